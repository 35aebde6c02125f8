"""The geometric median against its definition: no other point has a smaller sum of distances.

Shape letters: B rows, E width.
"""

import math

import pytest
import torch
from torch import Tensor

from panscope.training import median
from panscope.training.median import geometric_median


def cost(rows: Tensor, point: Tensor) -> float:
    """Sum of distances, float64."""
    return (rows.double() - point.double()).norm(dim=1).sum().item()


def by_descent(rows: Tensor) -> Tensor:
    """[E] by L-BFGS on the sum of distances in float64, from another start than the mean."""
    points = rows.double()
    point = points[0].clone().requires_grad_()
    search = torch.optim.LBFGS(
        [point], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = (points - point).square().sum(dim=1).add(1e-20).sqrt().mean()
        value.backward()
        return value

    search.step(loss)
    return point.detach()


def random_rows(kind: str) -> Tensor:
    g = torch.Generator().manual_seed(4)
    rows = torch.randn(200, 6, generator=g)
    if kind == "far from 0":
        return rows + 100
    if kind == "lopsided":
        return rows.exp()
    if kind == "outliers":
        rows[:60] = rows[:60] * 1e3 + 5e3
    return rows


@pytest.mark.parametrize("kind", ["round", "far from 0", "lopsided", "outliers"])
def test_it_is_where_descent_ends(kind: str):
    rows = random_rows(kind)
    found, expected = geometric_median(rows), by_descent(rows)
    assert found.dtype == torch.float32
    # It stops where a step moves less than 1e-6 of the median's norm; steps shrink by about half here.
    scale = max(1.0, expected.norm().item())
    assert (found.double() - expected).norm() < 1e-5 * scale
    assert cost(rows, found) <= cost(rows, expected) * (1 + 1e-8)


@pytest.mark.parametrize("kind", ["round", "lopsided", "outliers"])
def test_no_point_near_it_is_better(kind: str):
    rows, g = random_rows(kind), torch.Generator().manual_seed(5)
    found = geometric_median(rows)
    for size in (1e-2, 0.1, 1.0, 100.0):
        for _ in range(20):
            step = torch.randn(6, generator=g)
            assert cost(rows, found + size * step / step.norm()) > cost(rows, found)


def test_three_corners_see_it_under_120_degrees():
    """Fermat's point of an equilateral triangle is its middle; of this one, (0, 1/sqrt 3) by hand."""
    corners = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    assert geometric_median(corners).tolist() == pytest.approx([0, 1 / math.sqrt(3)], abs=1e-5)


def test_huge_rows_pull_the_mean_and_not_the_median():
    """40 of 200 rows a million times too large, all on one side."""
    g = torch.Generator().manual_seed(6)
    rows = torch.randn(200, 4, generator=g) + 2
    spoilt = rows.clone()
    spoilt[:40] *= 1e6
    assert (spoilt.mean(dim=0) - 2).norm() > 1e5
    assert (geometric_median(spoilt) - 2).norm() < 1


def test_equal_rows_are_their_own_median():
    row = torch.tensor([1.0, -2.0, 1e-3])
    assert torch.equal(geometric_median(row.expand(9, -1)), row)
    assert torch.equal(geometric_median(torch.zeros(5, 3)), torch.zeros(3))
    assert torch.equal(geometric_median(row[None]), row)


def test_a_majority_in_one_place_is_the_median():
    rows = torch.cat([torch.ones(7, 3), torch.randn(5, 3, generator=torch.Generator().manual_seed(7))])
    assert geometric_median(rows).tolist() == pytest.approx([1, 1, 1], abs=1e-5)


def test_many_rows_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch):
    """Rows of a multilayer coder lie layer after layer: the first so many would be those of the first layers alone."""
    monkeypatch.setattr(median, "_MOST_ROWS", 100)
    g = torch.Generator().manual_seed(8)
    layers = [torch.randn(500, 3, generator=g) + torch.tensor([place, 0.0, 0.0]) for place in (0, 5, 10)]
    found = geometric_median(torch.cat(layers))
    # Of 100 rows: the middle layer's place within a standard error of about 0.5.
    assert found.tolist() == pytest.approx([5, 0, 0], abs=1.5)
    few = torch.cat(layers)[:100]
    assert torch.equal(geometric_median(few), geometric_median(few.clone()))
