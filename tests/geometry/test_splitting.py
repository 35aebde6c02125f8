"""Feature splitting: planted splits, brute force, and linear combinations.

Shape letters: F latents of the wide coder, G of the narrow one, D width, K vectors combined.
"""

import numpy as np
import pytest
import torch

from panscope.geometry.baselines import Baselines
from panscope.geometry.combination import combined, explained
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.splitting import Splitting, split
from tests.support.planted_dictionaries import (
    WIDTH,
    cosine_matrix,
    orthogonal,
    planted_split,
    quiet,
    random_dictionary,
)


def splitting(narrow: Dictionary, wide: Dictionary) -> Splitting:
    return split(narrow, wide, Baselines(0, torch.device("cpu")), quiet)


@pytest.mark.parametrize("seed", range(3))
def test_planted_splits_are_found_exactly(seed: int):
    """Every child with its parent and its cosine, every new direction as new, every count of children."""
    planted = planted_split(seed)
    found = splitting(planted.narrow, planted.wide)
    new = torch.tensor([parent == -1 for parent in planted.parents])
    assert torch.equal(found.is_new, new)
    assert found.parent[~new].tolist() == [parent for parent in planted.parents if parent >= 0]
    assert torch.allclose(found.cosine, torch.tensor(planted.cosines, dtype=torch.float64), rtol=0, atol=1e-6)
    assert found.children.tolist() == [0, 1, 2, 3, 1, 2, 0, 1, 1, 3]
    assert 0.2 < found.threshold < 0.8
    numbers = found.numbers()
    assert numbers["new"] == 4 / len(planted.parents)
    assert numbers["split"] == 0.4
    assert numbers["with_children"] == {"0": 2, "1": 4, "2": 2, "3": 2}
    assert (numbers["wide"], numbers["narrow"], numbers["zeros"]) == (18, 10, 0)


def test_planted_splits_are_explained_by_what_was_planted():
    """All axes are orthogonal, so the narrow dictionary explains the square of the cosine and nothing more."""
    planted = planted_split(1)
    found = splitting(planted.narrow, planted.wide)
    expected = torch.tensor(planted.cosines, dtype=torch.float64).square()
    assert torch.allclose(found.explained, expected, rtol=0, atol=1e-6)
    unexplained = (expected <= found.random_explained.max()).double().mean().item()
    assert found.numbers()["not_combined"] == unexplained
    assert 4 / 18 <= unexplained < 1


def test_against_brute_force():
    narrow, wide = random_dictionary("narrow", 20, 40, 1), random_dictionary("wide", 50, 40, 2)
    found, cosines = splitting(narrow, wide), cosine_matrix(wide.rows, narrow.rows)
    np.testing.assert_array_equal(found.parent.numpy(), cosines.argmax(axis=1))
    np.testing.assert_allclose(found.cosine.numpy(), cosines.max(axis=1), rtol=0, atol=1e-12)
    assert found.combined == combined(40) == 10
    for latent in range(50):
        basis = narrow.rows.double().numpy()[np.argsort(-cosines[latent])[:10]].T
        target = wide.rows.double().numpy()[latent]
        fit = basis @ np.linalg.lstsq(basis, target, rcond=None)[0]
        assert found.explained[latent].item() == pytest.approx((fit @ fit) / (target @ target), abs=1e-9)
    children = [int(((cosines.argmax(axis=1) == g) & (cosines.max(axis=1) > found.threshold)).sum()) for g in range(20)]
    assert found.children.tolist() == children


def test_a_sum_of_narrow_latents_is_new_but_explained():
    """Llama Scope's question: a new vector may be a mere combination of others, or not."""
    axes = orthogonal(WIDTH, WIDTH, 4)
    narrow = Dictionary("narrow", axes[:20].float())
    weights = torch.linspace(1, 1.5, 12, dtype=torch.float64)
    wide = torch.stack([weights @ axes[:12], axes[30], axes[:2].sum(dim=0)])
    found = splitting(narrow, Dictionary("wide", wide.repeat(10, 1).float()))
    assert found.is_new[:3].tolist() == [True, True, False]
    assert found.explained[:3].tolist() == pytest.approx([1, 0, 1], abs=1e-6)


def test_latents_of_zeros_are_neither_new_nor_children():
    planted = planted_split(2)
    wide = torch.cat([planted.wide.rows, torch.zeros(2, WIDTH)])
    narrow = torch.cat([planted.narrow.rows, torch.zeros(1, WIDTH)])
    found = splitting(Dictionary("narrow", narrow), Dictionary("wide", wide))
    assert found.parent[-2:].tolist() == [-1, -1] and not found.is_new[-2:].any()
    assert found.explained[-2:].tolist() == [0, 0]
    assert found.children.tolist() == [0, 1, 2, 3, 1, 2, 0, 1, 1, 3, 0]
    assert (found.numbers()["zeros"], found.numbers()["new"]) == (2, 4 / 18)


def test_copies_of_a_vector_explain_no_more_than_one():
    others = torch.tensor([[1.0, 0, 0], [2, 0, 0], [1, 1e-3, 0], [0, 0, 0]])
    rows = torch.tensor([[1.0, 1, 1]]).expand(4, 3)
    indices = torch.tensor([[0, 1, -1], [0, -1, -1], [-1, -1, -1], [0, 2, 1]])
    found = explained(rows, others, indices)
    assert found.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 2 / 3], abs=1e-6)


def test_any_number_of_copies_of_a_few_vectors_explain_what_those_do():
    """Sixteen copies of three vectors, of many norms and signs: their span has three dimensions and no more."""
    draw = torch.Generator().manual_seed(7)
    few = torch.randn(200, 3, 24, generator=draw, dtype=torch.float64)
    signs = torch.randint(0, 2, (200, 16, 1), generator=draw) * 2 - 1
    copies = few[:, torch.arange(16) % 3] * signs * torch.logspace(-2, 2, 16)[:, None]
    targets = torch.randn(200, 24, generator=draw, dtype=torch.float64)
    found = explained(targets, copies.flatten(0, 1), torch.arange(200 * 16).view(200, 16))
    span = torch.linalg.qr(few.mT).Q
    expected = torch.einsum("rdk,rd->rk", span, targets).square().sum(dim=1) / targets.square().sum(dim=1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_how_much_is_gathered_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    narrow, wide = random_dictionary("narrow", 20, 40, 5), random_dictionary("wide", 33, 40, 6)
    indices = torch.arange(33 * 4).view(33, 4) % 20
    whole = explained(wide.rows, narrow.rows, indices)
    monkeypatch.setattr("panscope.geometry.combination._GATHERED", 4 * 40 * 5)
    assert torch.allclose(explained(wide.rows, narrow.rows, indices), whole, rtol=0, atol=1e-14)


def test_how_many_are_combined():
    assert [combined(width) for width in (1, 7, 16, 64, 4096)] == [1, 1, 4, 16, 16]
