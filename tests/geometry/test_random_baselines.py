"""Random baselines: the paper's numbers, the bound, and the search among random vectors."""

import math

import numpy as np
import pytest
import torch

from panscope.geometry.baselines import Baselines, johnson_lindenstrauss, pair_probability, random_rows
from tests.support.planted_dictionaries import cosine_matrix, quiet

CPU = torch.device("cpu")


@pytest.mark.parametrize(("expansion", "expected"), [(8, 0.174), (32, 0.186)])
def test_the_bound_of_the_paper(expansion: int, expected: float):
    """Llama Scope, section 4.6: Llama-3.1-8B with 8 and 32 latents a dimension; it cuts the digits off."""
    assert johnson_lindenstrauss(expansion * 4096, 4096) == pytest.approx(expected, abs=6e-4)
    assert pair_probability(expansion * 4096) == 2 / (expansion * 4096)
    assert pair_probability(1) == 1


def test_hardly_any_pair_exceeds_the_bound():
    """In 200 draws of 64 directions, each with a probability of at most about 2/64, 20 would be beyond all doubt."""
    bound, exceeded = johnson_lindenstrauss(64, 256), 0
    for seed in range(200):
        cosines = np.abs(cosine_matrix(random_rows(64, 256, seed), random_rows(64, 256, seed)))
        np.fill_diagonal(cosines, 0)
        exceeded += cosines.max() > bound
    assert exceeded < 20
    assert bound < 0.45  # so that it says something


def test_random_baselines_are_searches_among_random_vectors():
    found = Baselines(3, CPU)
    own = found.own(20, 12, quiet)
    cosines = cosine_matrix(random_rows(20, 12, 6), random_rows(20, 12, 6))
    np.fill_diagonal(cosines, -1)
    np.testing.assert_allclose(own.numpy(), cosines.max(axis=1), rtol=0, atol=1e-12)
    pair = found.pair(20, 30, 12, quiet)
    cosines = cosine_matrix(random_rows(20, 12, 6), random_rows(30, 12, 7))
    np.testing.assert_allclose(pair.cosines.numpy(), cosines.max(axis=1), rtol=0, atol=1e-12)


def test_a_random_largest_cosine_is_where_theory_puts_it():
    """A cosine in D dimensions is about normal with deviation 1/sqrt(D): the largest of n^2/2 pairs follows."""
    largest = Baselines(0, CPU).own(2000, 1024, quiet).max().item()
    pairs = 2000 * 1999 / 2
    expected = math.sqrt(2 * math.log(pairs)) / math.sqrt(1024)
    assert 0.85 * expected < largest < 1.05 * expected
    assert largest < johnson_lindenstrauss(2000, 1024)


def test_each_shape_is_searched_once_and_the_seed_decides():
    told: list[int] = []
    found = Baselines(1, CPU)
    first = found.own(10, 8, lambda done, total: told.append(done))
    assert found.own(10, 8, lambda done, total: told.append(done)) is first
    assert found.pair(10, 11, 8, quiet) is found.pair(10, 11, 8, quiet)
    assert told == [10]
    assert torch.equal(Baselines(1, CPU).own(10, 8, quiet), first)
    assert not torch.equal(Baselines(2, CPU).own(10, 8, quiet), first)
