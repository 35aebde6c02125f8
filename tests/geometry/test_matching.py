"""Matching the latents of one coder to another: planted partners, brute force, and chance."""

import numpy as np
import pytest
import torch

from panscope.geometry.baselines import Baselines, random_rows
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.matching import Matching, match
from tests.support.planted_dictionaries import cosine_matrix, orthogonal, quiet, random_dictionary, rotated


def matched(a: Dictionary, b: Dictionary, seed: int = 0) -> Matching:
    return match(a, b, Baselines(seed, torch.device("cpu")), quiet)


def test_against_brute_force():
    a, b = random_dictionary("a", 25, 10, 1), random_dictionary("b", 40, 10, 2)
    found, cosines = matched(a, b, seed=4), cosine_matrix(a.rows, b.rows)
    np.testing.assert_array_equal(found.partner.numpy(), cosines.argmax(axis=1))
    np.testing.assert_allclose(found.cosine.numpy(), cosines.max(axis=1), rtol=0, atol=1e-12)
    chance = cosine_matrix(random_rows(25, 10, 8), random_rows(40, 10, 9)).max(axis=1)
    np.testing.assert_allclose(found.random_cosine.numpy(), chance, rtol=0, atol=1e-12)
    numbers = found.numbers()
    assert numbers["cosine"]["mean"] == pytest.approx(cosines.max(axis=1).mean(), abs=1e-12)
    assert numbers["random"]["quantiles"]["0.5"] == pytest.approx(np.quantile(chance, 0.5, method="inverted_cdf"))
    assert numbers["above_random"] == (cosines.max(axis=1) > chance.max()).mean()
    assert numbers["above"]["0.7"] == (cosines.max(axis=1) > 0.7).mean()
    assert numbers["partners"] == len(set(cosines.argmax(axis=1)))


def test_a_planted_matching_is_found_exactly():
    """B is A in another order, at other norms, each latent rotated by a known angle."""
    axes = orthogonal(48, 64, 3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(5))
    planted = torch.linspace(0.75, 1, 20, dtype=torch.float64)
    turned = torch.stack([rotated(axes[i], axes[20 + i], planted[i].item()) for i in range(20)])
    b = torch.empty(20, 64, dtype=torch.float64)
    b[order] = turned * torch.linspace(0.1, 9, 20, dtype=torch.float64)[:, None]
    found = matched(Dictionary("a", axes[:20].float()), Dictionary("b", b.float()))
    assert torch.equal(found.partner, order)
    assert torch.allclose(found.cosine, planted, rtol=0, atol=1e-6)
    numbers = found.numbers()
    assert (numbers["above_random"], numbers["partners"]) == (1, 20)
    assert numbers["above"] == {"0.5": 1, "0.7": 1, "0.9": pytest.approx((planted > 0.9).double().mean().item())}


def test_random_dictionaries_match_as_chance_does():
    found = matched(random_dictionary("a", 200, 64, 6), random_dictionary("b", 300, 64, 7)).numbers()
    assert abs(found["cosine"]["mean"] - found["random"]["mean"]) < 0.01
    assert found["above_random"] < 0.05


def test_latents_of_zeros_have_no_partner_and_are_none():
    a = Dictionary("a", torch.tensor([[1.0, 0], [0, 0], [-1, -1]]))
    b = Dictionary("b", torch.tensor([[0.0, 0], [1, 1]]))
    found = matched(a, b)
    assert found.partner.tolist() == [1, -1, 1]
    assert found.cosine[2].item() == pytest.approx(-1)
    assert (found.numbers()["zeros"], found.numbers()["partners"]) == (1, 1)
    assert found.numbers()["cosine"]["mean"] == pytest.approx((0.5**0.5 - 1) / 2, abs=1e-7)
