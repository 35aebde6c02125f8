"""The neighbourhood of a latent, within and across coders, and the latent with the tightest one."""

import numpy as np
import pytest
import torch

from panscope.geometry.dictionary import Dictionary
from panscope.geometry.neighbours import Counts, densest, neighbourhood
from panscope.kernels.cosines import excluding_self, nearest
from panscope.types import UserError
from tests.support.planted_dictionaries import cosine_matrix, orthogonal, random_dictionary, rotated

OWN, OTHER, WIDE = (
    random_dictionary(name, n, 16, seed) for name, n, seed in (("a", 30, 1), ("b", 30, 2), ("c", 90, 3))
)


def test_who_is_in_it():
    """The seed, 6 of its own coder without itself, 6 of another, 24 of the widest: as in Llama Scope's Fig. 7."""
    found = neighbourhood(OWN, 4, Counts(), other=OTHER, wider=WIDE)
    assert [point.role for point in found.points] == ["seed"] + ["own"] * 6 + ["other"] * 6 + ["wider"] * 24
    assert (found.points[0].coder, found.points[0].latent, found.points[0].cosine) == ("a", 4, 1)
    for dictionary, start, count in ((OWN, 1, 6), (OTHER, 7, 6), (WIDE, 13, 24)):
        cosines = cosine_matrix(OWN.rows[4:5], dictionary.rows)[0]
        if dictionary is OWN:
            cosines[4] = -np.inf
        points = found.points[start : start + count]
        assert [point.latent for point in points] == np.argsort(-cosines)[:count].tolist()
        assert [point.cosine for point in points] == pytest.approx(np.sort(-cosines)[:count] * -1, abs=1e-12)
        assert {point.coder for point in points} == {dictionary.name}
        assert torch.equal(found.rows[start : start + count], dictionary.rows[[point.latent for point in points]])


def test_its_numbers():
    found = neighbourhood(OWN, 4, Counts(2, 3, 4), other=OTHER, wider=WIDE)
    numbers, cosines = found.numbers(), cosine_matrix(found.rows, found.rows)
    assert numbers["min_cosine"] == pytest.approx(cosines.min(), abs=1e-12)
    assert numbers["min_cosine_to_seed"] == pytest.approx(cosines[0].min(), abs=1e-12)
    assert numbers["roles"] == {"seed": 1, "own": 2, "other": 3, "wider": 4}
    assert numbers["jl"] == pytest.approx((12 * np.log(90) / 16) ** 0.5)


def test_what_is_not_there_is_left_out():
    assert len(neighbourhood(OWN, 0, Counts()).points) == 7
    small = Dictionary("s", OWN.rows[:3])
    assert len(neighbourhood(small, 0, Counts(), wider=OTHER).points) == 1 + 2 + 24
    assert len(neighbourhood(OWN, 0, Counts(0, 0, 5), other=OTHER, wider=WIDE).points) == 6


def test_latents_that_do_not_exist_or_have_no_direction():
    for latent in (-1, 30):
        with pytest.raises(
            UserError, match=f"--latent {latent} does not exist: coder 'a' has 30 latents, so give 0 to"
        ):
            neighbourhood(OWN, latent, Counts())
    zeros = Dictionary("z", torch.cat([torch.zeros(1, 16), OWN.rows]))
    with pytest.raises(UserError, match="--latent 0 of coder 'z' has a decoder vector of zeros"):
        neighbourhood(zeros, 0, Counts())
    assert 0 not in [point.latent for point in neighbourhood(zeros, 1, Counts(own=30)).points]


def test_the_seed_that_nobody_names_is_in_the_tightest_cluster():
    """Ten orthogonal latents, and four around one axis: the middle of those."""
    axes = orthogonal(20, 32, 4)
    around = [rotated(axes[11], axes[12 + i], 0.9) for i in range(3)]
    rows = torch.stack([*axes[:10], around[0], axes[11], *around[1:]]).float()
    own = nearest(rows, rows, 3, limits=excluding_self(len(rows)))
    assert densest(own) == 11


def test_there_may_be_no_seed():
    zeros = torch.zeros(3, 4)
    assert densest(nearest(zeros, zeros, 2, limits=excluding_self(3))) is None
    one = torch.ones(1, 4)
    assert densest(nearest(one, one, 2, limits=excluding_self(1))) is None
