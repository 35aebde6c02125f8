"""The nearest rows by cosine, against the whole matrix of cosines in float64.

Shape letters: A query rows, B candidate rows, D width.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from panscope.kernels import cosines
from panscope.kernels.cosines import SearchLimits, directions, excluding_self, nearest, unit_rows


def all_cosines(a: Tensor, b: Tensor) -> np.ndarray:
    """[A, B] in float64, row by row; NaN for rows of zeros."""
    x, y = a.numpy().astype(np.float64), b.numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.array([[p @ q / (math.sqrt(p @ p) * math.sqrt(q @ q)) for q in y] for p in x])


def draw(rows: int, width: int, seed: int) -> Tensor:
    """Rows of very different norms."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-3, 3, rows)[:, None]
    return torch.randn(rows, width, generator=generator) * sizes


@pytest.mark.parametrize("block", [1, 3, 16, 1000])
@pytest.mark.parametrize("k", [1, 4])
def test_nearest_are_those_of_the_whole_matrix(block: int, k: int):
    a, b = draw(23, 9, 1), draw(31, 9, 2)
    oracle = all_cosines(a, b)
    found = nearest(a, b, k, block=block)
    order = np.argsort(-oracle, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.indices.numpy(), order)
    np.testing.assert_allclose(found.cosines.numpy(), np.take_along_axis(oracle, order, 1), rtol=0, atol=1e-14)
    assert found.cosines.dtype == torch.float64


def test_the_size_of_blocks_changes_no_bit():
    a, b = draw(50, 24, 3), draw(70, 24, 4)
    whole = nearest(a, b, 5, block=1000)
    for block in (1, 7, 32):
        cut = nearest(a, b, 5, block=block)
        assert torch.equal(cut.indices, whole.indices)
        assert torch.allclose(cut.cosines, whole.cosines, rtol=0, atol=1e-15)


@pytest.mark.parametrize("block", [3, 64])
def test_those_who_are_found_stand_in_the_order_of_exact_cosines(block: int):
    """Cosines that differ by 1e-10, which float32 does not distinguish."""
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    cosine = 0.5 + 1e-10 * order.double()
    b = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)
    found = nearest(torch.tensor([[1.0, 0.0]], dtype=torch.float64), b, 8, block=block)
    assert torch.equal(order[found.indices[0]], torch.arange(7, -1, -1))
    assert torch.allclose(found.cosines[0], cosine.sort(descending=True).values, rtol=0, atol=1e-15)


@pytest.mark.parametrize("block", [2, 64])
def test_within_one_matrix_nobody_finds_itself(block: int):
    a = draw(20, 6, 5)
    oracle = all_cosines(a, a)
    np.fill_diagonal(oracle, -np.inf)
    found = nearest(a, a, 2, limits=excluding_self(len(a)), block=block)
    np.testing.assert_array_equal(found.indices.numpy(), np.argsort(-oracle, axis=1)[:, :2])


@pytest.mark.parametrize("block", [2, 5, 64])
def test_only_earlier_rows(block: int):
    """The upper triangle: the neighbours of row j are rows before it, and the first row has none."""
    a = draw(17, 6, 6)
    oracle = np.where(np.tri(17, k=-1, dtype=bool), all_cosines(a, a), -np.inf)
    found = nearest(a, a, limits=SearchLimits(stop=torch.arange(17)), block=block)
    assert (found.indices[0].item(), found.cosines[0].item()) == (-1, 0.0)
    np.testing.assert_array_equal(found.indices[1:, 0].numpy(), oracle[1:].argmax(axis=1))
    np.testing.assert_allclose(found.cosines[1:, 0].numpy(), oracle[1:].max(axis=1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_rows_of_zeros_find_nobody_and_are_found_by_nobody(block: int):
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, -1.0]])
    b = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0], [1.0, 1.5]])
    found = nearest(a, b, 3, block=block)
    assert found.found.tolist() == [True, False, True]
    assert found.indices.tolist() == [[1, 3, -1], [-1, -1, -1], [3, 1, -1]]
    assert found.cosines[1].tolist() == [0, 0, 0]
    assert found.cosines[2, 1].item() == pytest.approx(-1, abs=1e-15)  # all are far, but nearer than a row of zeros


def test_fewer_than_k():
    found = nearest(draw(3, 4, 7), draw(2, 4, 8), 5)
    assert (found.indices[:, 2:] == -1).all() and (found.indices[:, :2] >= 0).all()
    assert nearest(torch.empty(0, 4), draw(3, 4, 7), 2).indices.shape == (0, 2)


def test_tiny_and_huge_rows_have_their_direction():
    a = torch.tensor([[1e-30, 0.0], [0.0, 1e30]])
    found = nearest(a, a * torch.tensor([[1e-5], [1e5]]))
    assert found.indices.flatten().tolist() == [0, 1]
    assert torch.allclose(found.cosines, torch.ones(2, 1, dtype=torch.float64))
    assert torch.equal(unit_rows(a), torch.eye(2))


def test_no_product_is_larger_than_a_block(monkeypatch: pytest.MonkeyPatch):
    """65,536 by 65,536 latents must not be one matrix: products have the size of a block."""
    shapes, multiply = [], torch.Tensor.__matmul__

    def watched(a: Tensor, b: Tensor) -> Tensor:
        shapes.append((len(a), b.shape[1]))
        return multiply(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    nearest(draw(130, 3, 9), draw(70, 3, 10), block=32)
    assert len(shapes) == 5 * 3
    assert max(rows * columns for rows, columns in shapes) == 32 * 32
    assert cosines.BLOCK**2 * 4 == 64 * 2**20


def test_progress_ends_with_all_rows():
    told = []
    nearest(draw(10, 3, 11), draw(4, 3, 12), block=4, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_directions_are_float64_at_norm_1():
    unit = directions(draw(5, 7, 13))
    assert unit.dtype == torch.float64
    assert torch.allclose(unit.norm(dim=1), torch.ones(5, dtype=torch.float64), atol=1e-15, rtol=0)
    assert directions(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]
