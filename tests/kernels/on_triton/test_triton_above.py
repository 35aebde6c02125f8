"""Pre-activations above a floor, against float64.

Shape letters: B rows, D input width, F latents.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.backend import Entries
from tests.support.triton_oracle import EPS, exact

QUIET = settings(
    deadline=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    phases=[Phase.generate],
)
MANY = 1 << 20


def run(kernels: Any, x: Tensor, W: Tensor, b: Tensor, floor: Tensor, capacity: int = MANY) -> Entries | None:
    return kernels.above(kernels.rows(x, None), W, b, kernels.screen(W), floor, capacity)


def check(found: Entries | None, x: Tensor, W: Tensor, b: Tensor, floor: Tensor) -> None:
    """Values are as exact as float32 sums; all that are clearly above the floor are included, none clearly below it."""
    assert found is not None
    pre, slack = exact(x, W, b), EPS * (x.norm(dim=1)[:, None] * W.norm(dim=1) + b.abs()).double()
    there = torch.zeros(pre.shape, dtype=torch.bool)
    rows = torch.arange(len(x)).repeat_interleave(found.starts.diff())
    there[rows, found.latents] = True
    assert there.sum() == len(found.values)
    assert there[pre > floor + slack].all()
    assert not there[pre < floor - slack].any()
    assert ((found.values - pre[rows, found.latents]).abs() <= slack[rows, found.latents]).all()
    assert (found.values > floor[found.latents]).all()
    places = rows * len(W) + found.latents
    assert (places.diff() > 0).all(), "rows in order, latents rising inside a row"
    assert found.starts[0] == 0
    assert len(found.starts) == len(x) + 1


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 90), st.data())
@QUIET
def test_above(kernels: Any, B: int, D: int, F: int, data: st.DataObject) -> None:
    """Odd sizes, floors that all, half, few or none exceed."""
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, W, b = torch.randn(B, D), torch.randn(F, D), torch.randn(F)
    floor = torch.randn(F) + data.draw(st.sampled_from([-50.0, 0.0, 2.0, 50.0])) * D**0.5
    check(run(kernels, x, W, b, floor), x, W, b, floor)


def test_floors_that_the_screen_cannot_decide(kernels: Any) -> None:
    """Floors within 1e-6 of the scores, on both sides."""
    x, W, b = torch.randn(3, 50), torch.randn(70, 50), torch.randn(70)
    floor = (exact(x[:1], W, b)[0] + 1e-5 * torch.randn(70)).float()
    check(run(kernels, x, W, b, floor), x, W, b, floor)


def test_the_floor_itself_is_not_above(kernels: Any) -> None:
    """Integers, so that nothing is rounded."""
    x, W = torch.ones(1, 2), torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
    found = run(kernels, x, W, torch.zeros(3), torch.full((3,), 3.0))
    assert found is not None
    assert (found.values.tolist(), found.latents.tolist(), found.starts.tolist()) == ([4.0], [2], [0, 1])


def test_capacity(kernels: Any) -> None:
    x, W, b, floor = torch.randn(3, 6), torch.randn(40, 6), torch.zeros(40), torch.zeros(40)
    count = int((exact(x, W, b) > 0).sum())
    check(run(kernels, x, W, b, floor, count), x, W, b, floor)
    assert run(kernels, x, W, b, floor, count - 1) is None


def test_more_candidates_than_there_is_room_for(
    kernels: Any, part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Floors just above most scores: the batch is processed in halves."""
    monkeypatch.setattr(part("above"), "_EXTRA_CANDIDATES", 0)
    x = torch.randn(1, 30)
    x, W, b = torch.cat([x, x, x]), x / x.norm() + 1e-4 * torch.randn(40, 30), torch.zeros(40)
    floor = (exact(x[:1], W, b)[0] + 1e-3).float()
    floor[:5] -= 1
    check(run(kernels, x, W, b, floor, 20), x, W, b, floor)
    assert run(kernels, x, W, b, floor, 14) is None


def test_nothing_and_nobody(kernels: Any) -> None:
    W, b = torch.randn(5, 3), torch.zeros(5)
    found = run(kernels, torch.randn(2, 3), W, b, torch.full((5,), 1e9))
    assert found is not None
    assert (len(found.values), len(found.latents), found.starts.tolist()) == (0, 0, [0, 0, 0])
    found = run(kernels, torch.empty(0, 3), W, b, b)
    assert found is not None
    assert (len(found.values), found.starts.tolist()) == (0, [0])
    found = run(kernels, torch.randn(2, 3), W, b, b, 0)
    assert found is None


def test_nan_is_never_above(kernels: Any) -> None:
    x, W, b = torch.randn(3, 7), torch.randn(12, 7), torch.zeros(12)
    x[1, 2] = float("nan")
    floor = torch.full((12,), -float("inf"))
    floor[3], floor[4] = float("inf"), float("nan")
    found = run(kernels, x, W, b, floor)
    assert found is not None
    assert found.starts.tolist() == [0, 10, 10, 20]
    assert found.latents.tolist() == 2 * [0, 1, 2, *range(5, 12)]


def test_chunks_change_nothing(kernels: Any, part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, b, floor = torch.randn(4, 12), torch.randn(33, 12), torch.randn(33), torch.rand(33)
    whole = run(kernels, x, W, b, floor)
    monkeypatch.setattr(part("product"), "_BYTES", 1)
    rows = run(kernels, x, W, b, floor)
    assert whole is not None
    assert rows is not None
    assert torch.equal(whole.values, rows.values)
    assert torch.equal(whole.latents, rows.latents)
    assert torch.equal(whole.starts, rows.starts)
