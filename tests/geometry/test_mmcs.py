"""The mean max cosine similarity of a dictionary with itself, compared with brute force and known values.

Shape letters: F latents, D width.
"""

import math
import statistics

import numpy as np
import pytest
import torch

from panscope.geometry.baselines import Baselines
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.mmcs import mmcs, upper
from panscope.kernels.cosines import excluding_self, nearest
from tests.support.planted_dictionaries import cosine_matrix, orthogonal, quiet, random_dictionary, rotated


def numbers_of(dictionary: Dictionary, seed: int = 0) -> dict:
    rows = dictionary.rows
    own = nearest(rows, rows, 3, limits=excluding_self(len(rows)))
    chance = Baselines(seed, torch.device("cpu")).own(len(dictionary), dictionary.width, quiet)
    return mmcs(dictionary, own, upper(dictionary, quiet), chance)


def test_against_brute_force():
    dictionary = random_dictionary("a", 40, 12, seed=1)
    cosines = cosine_matrix(dictionary.rows, dictionary.rows)
    others = np.where(np.eye(40, dtype=bool), -np.inf, cosines).max(axis=1)
    triangle = np.triu(cosines, k=1).max(axis=0)
    found = numbers_of(dictionary)
    assert found["mean"] == pytest.approx(others.mean(), abs=1e-12)
    assert found["variance"] == pytest.approx(statistics.variance(others.tolist()), rel=1e-10)
    assert found["sem"] == pytest.approx(statistics.stdev(others.tolist()) / math.sqrt(40), rel=1e-10)
    assert found["upper_mean"] == pytest.approx(triangle.mean(), abs=1e-12)
    assert found["upper_variance"] == pytest.approx(statistics.variance(triangle.tolist()), rel=1e-10)
    assert found["upper_mean"] < found["mean"]
    assert (found["latents"], found["width"], found["zeros"]) == (40, 12, 0)
    assert found["jl"] == math.sqrt(12 * math.log(40) / 12)


def test_an_orthogonal_dictionary_has_0_and_copies_have_1():
    axes = orthogonal(8, 16, 0)
    assert numbers_of(Dictionary("a", axes.float()))["mean"] == pytest.approx(0, abs=1e-7)
    assert numbers_of(Dictionary("a", torch.cat([axes, 3 * axes]).float()))["mean"] == pytest.approx(1, abs=1e-7)


def test_pairs_at_a_planted_cosine():
    """Four pairs at cosine 0.6, all else orthogonal; in the upper triangle, half of the latents have no nearest."""
    axes = orthogonal(8, 16, 2)
    twins = torch.stack([rotated(axes[i], axes[4 + i], 0.6) for i in range(4)])
    found = numbers_of(Dictionary("a", torch.cat([axes[:4], twins]).float()))
    assert found["mean"] == pytest.approx(0.6, abs=1e-7)
    assert found["variance"] == pytest.approx(0, abs=1e-12)
    assert found["upper_mean"] == pytest.approx(0.3, abs=1e-7)


def test_latents_of_zeros_are_counted_and_left_out():
    rows = random_dictionary("a", 20, 8, seed=3).rows
    with_zeros = torch.cat([rows[:7], torch.zeros(2, 8), rows[7:], torch.zeros(1, 8)])
    alone, padded = numbers_of(Dictionary("a", rows)), numbers_of(Dictionary("a", with_zeros))
    assert (padded["zeros"], padded["latents"]) == (3, 23)
    for name in ("mean", "variance", "sem", "upper_mean"):
        assert padded[name] == pytest.approx(alone[name], abs=1e-12)


def test_a_random_dictionary_is_no_nearer_than_chance():
    found = numbers_of(random_dictionary("a", 300, 64, seed=4))
    assert abs(found["mean"] - found["random_mean"]) < 0.01
    assert found["above_random"] < 0.05
    axes = orthogonal(30, 64, 5)
    copied = numbers_of(Dictionary("a", torch.cat([axes, axes]).float()))
    assert copied["above_random"] == 1


def test_one_latent_alone():
    found = numbers_of(Dictionary("a", torch.ones(1, 4)))
    assert math.isnan(found["mean"]) and math.isnan(found["random_max"])
    assert found["jl"] == 0
