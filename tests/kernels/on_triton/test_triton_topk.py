"""TopK against float64, on random rows and on rows constructed to mislead the screen.

Shape letters: B rows, D input width, F latents, K codes per row.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.backend import Screen
from tests.support.triton_oracle import EPS, check_topk, exact

QUIET = settings(
    deadline=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    phases=[Phase.generate],
)


def run(kernels: Any, x: Tensor, W: Tensor, b: Tensor, k: int, norms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return kernels.topk(kernels.rows(x, None), W, b, kernels.screen(W), k, norms)


def tolerance(x: Tensor, W: Tensor, b: Tensor) -> float:
    return float(EPS * (x.norm(dim=1).nan_to_num().max() * W.norm(dim=1).max() + b.abs().max()))


def crowded(D: int, F: int, spread: float) -> tuple[Tensor, Tensor]:
    """A row and latents whose scores differ by less than the resolution of float16."""
    x = torch.randn(1, D)
    W = x / x.norm() + spread * torch.randn(F, D)
    return x, W


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), st.data())
@QUIET
def test_topk(kernels: Any, B: int, D: int, F: int, data: st.DataObject) -> None:
    """Odd sizes, one row, k up to the width, with and without norms, biases with which few or all are positive."""
    k, shift = data.draw(st.integers(1, F)), data.draw(st.sampled_from([-3.0, 0.0, 3.0]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, W, b = torch.randn(B, D), torch.randn(F, D), torch.randn(F) + shift
    norms = torch.rand(F) + 0.1 if data.draw(st.booleans()) else None
    check_topk(run(kernels, x, W, b, k, norms), exact(x, W, b), norms, 2 * tolerance(x, W, b))


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_that_the_screen_cannot_tell_apart(kernels: Any, spread: float, weighted: bool) -> None:
    x, W = crowded(48, 200, spread)
    b, norms = 1e-4 * torch.randn(200), 1 + 1e-4 * torch.rand(200) if weighted else None
    check_topk(run(kernels, x, W, b, 9, norms), exact(x, W, b), norms, 2 * tolerance(x, W, b))


def test_the_bound_holds_and_is_not_vacuous(kernels: Any, part: Callable[[str], Any]) -> None:
    """The upper bound of every latent is above its score, on random and on misleading rows, by less than 0.4 % of
    |x| |w| unless numbers are extremely small."""
    bound, groups = part("bound"), part("groups")
    x, W = crowded(64, 96, 1e-4)
    W[::3] = torch.randn(32, 64)
    W[1::9] *= 1e-12
    W[2::9] *= 1e12
    # All roundings in one direction and just above a tie: the largest error of float16.
    x = torch.cat([x, torch.full((1, 64), 1 + 2.0**-11 + 2.0**-20), 1e-30 * torch.randn(1, 64), torch.zeros(1, 64)])
    W[4] = 1 + 2.0**-11 + 2.0**-20
    b = torch.randn(96)
    rows, screen = kernels.rows(x, None), kernels.screen(W)
    latent = bound.Latent(b, screen.size, screen.lost, None)
    (chunk,) = bound.screened(rows, screen, latent, 0)
    tops = groups.tops(chunk, 1, floor=False).double()
    true = exact(x, W, b)
    assert (tops >= true).all()
    size = x.double().norm(dim=1)[:, None] * W.double().norm(dim=1)
    assert (tops - true <= 0.004 * size + 1e-5 * b.abs() + 1e-15 * W.norm(dim=1)).all()


NEARLY = 2.0**-11 - 2.0**-20
"""Just under half of float16's spacing at 1: rounded away."""
ALONE = {
    "the row's rounding": ([1 + NEARLY, 1.0], [1.0, -1.0]),
    "the latent's rounding": ([1.0, -1.0], [1 + NEARLY, 1.0]),
    "the result's rounding": ([1.0, NEARLY / 2], [1.0, 2.0]),
    "the sum's rounding": ([1.0, 2.0**-24, -1.0], [1.0, 0.5, 1.0]),
    "results below the smallest half": ([2.0**-13, 1.0, 0.0], [2.0**-13, 0.0, 1.0]),
    "products below the smallest float": ([1e-35], [1e-35]),
    "halves below the smallest half": ([1.0, 2.0**-26], [0.0, 1.0]),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_part_of_the_bound_is_needed_alone(kernels: Any, part: Callable[[str], Any], name: str) -> None:
    """Cases in which all other terms of the bound are far smaller than the error of the screen."""
    bound, groups = part("bound"), part("groups")
    x, W = (torch.tensor([row]) for row in ALONE[name])
    rows, screen, b = kernels.rows(x, None), kernels.screen(W), torch.zeros(1)
    (chunk,) = bound.screened(rows, screen, bound.Latent(b, screen.size, screen.lost, None), 0)
    assert groups.tops(chunk, 1, floor=False).double() >= exact(x, W, b) > 0


def test_lists_too_short_for_the_candidates(kernels: Any, part: Callable[[str], Any]) -> None:
    """150 scores within the bound of each other and lists of 72: all latents of that row alone are scanned."""
    x, W = crowded(32, 150, 1e-4)
    x = torch.cat([x, torch.randn(1, 32)])
    b = torch.zeros(150)
    found = part("topk").topk(kernels.rows(x, None), W, b, kernels.screen(W), 5, None, 72)
    check_topk(found, exact(x, W, b), None, 2 * tolerance(x, W, b))
    norms = 1 + 1e-4 * torch.rand(150)
    found = part("topk").topk(kernels.rows(x, None), W, b, kernels.screen(W), 5, norms, 72)
    check_topk(found, exact(x, W, b), norms, 2 * tolerance(x, W, b))


@pytest.mark.parametrize("capacity", [None, 70])
def test_ties_fill_exactly_k_places(kernels: Any, part: Callable[[str], Any], capacity: int | None) -> None:
    """Ninety equal latents and one better one."""
    x, W = torch.randn(2, 8), torch.randn(1, 8).expand(91, 8).contiguous()
    W[17] *= 2
    x = x * (x @ W[:1].T).sign()
    capacity = part("topk").list_capacity(6) if capacity is None else capacity
    pre, latents = part("topk").topk(kernels.rows(x, None), W, torch.zeros(91), kernels.screen(W), 6, None, capacity)
    assert (pre > 0).all()
    assert (latents == 17).sum(dim=1).tolist() == [1, 1]
    for row in latents.tolist():
        assert len(set(row)) == 6


def test_rows_that_cannot_be_ranked_take_no_place(kernels: Any) -> None:
    """NaN, zeros without bias, none positive; the rows between them are not affected."""
    x, W = torch.randn(5, 6), torch.randn(20, 6)
    x[1, 3] = float("nan")
    x[2] = 0
    b = torch.zeros(20)
    pre, latents = run(kernels, x, W, b, 4)
    assert (pre[1:3] == 0).all()
    assert (latents[1:3] == 0).all()
    plain = [0, 3, 4]
    check_topk((pre[plain], latents[plain]), exact(x[plain], W, b), None, 2 * tolerance(x, W, b))
    pre, latents = run(kernels, x, W, b - 100, 4)
    assert not pre.any()
    assert not latents.any()


def test_fewer_positive_than_k(kernels: Any) -> None:
    x, W = torch.ones(1, 3), torch.tensor([[1.0], [-1.0], [2.0], [0.0], [-4.0]]).expand(5, 3).contiguous()
    pre, latents = run(kernels, x, W, torch.zeros(5), 4)
    assert sorted(zip(pre[0].tolist(), latents[0].tolist(), strict=True)) == [(0, 0), (0, 0), (3, 0), (6, 2)]


def test_a_norm_of_zero_takes_no_place(kernels: Any) -> None:
    x, W = torch.ones(1, 2), torch.tensor([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    pre, latents = run(kernels, x, W, torch.zeros(3), 2, torch.tensor([0.0, 1.0, 1.0]))
    assert (sorted(pre[0].tolist()), sorted(latents[0].tolist())) == ([1.0, 2.0], [1, 2])


def test_the_largest_floats_are_decided_exactly(kernels: Any) -> None:
    """Rows that cannot be scaled and are infinite in float16: screened scores are NaN, but exact scores are not."""
    x = torch.tensor([[2e38, 1.0]])
    W = torch.tensor([[1e-10, 0.0], [2e-10, 0.0], [-1e-10, 0.0], [0.0, 1e26], [0.0, 1e27]])
    pre, latents = run(kernels, x, W, torch.zeros(5), 2)
    assert latents[0].tolist() == [0, 1]
    torch.testing.assert_close(pre.sum(), torch.tensor(2e28 + 4e28))


def test_chunks_and_repetition_change_nothing(
    kernels: Any, part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, W, b = torch.randn(4, 12), torch.randn(33, 12), torch.randn(33)
    whole = run(kernels, x, W, b, 3)
    again = run(kernels, x, W, b, 3)
    monkeypatch.setattr(part("product"), "_BYTES", 1)
    rows = run(kernels, x, W, b, 3)
    for other in (again, rows):
        assert torch.equal(whole[0], other[0])
        assert torch.equal(whole[1], other[1])


def test_codes_come_in_order_of_latents_whatever_the_screen_says(kernels: Any) -> None:
    """A screen with different last bits finds candidates in another order, but codes are bit-identical."""
    x, W, b = torch.randn(2, 20), torch.randn(90, 20), torch.randn(90)
    rows, screen = kernels.rows(x, None), kernels.screen(W)
    pre, latents = kernels.topk(rows, W, b, screen, 7, None)
    assert (latents.diff(dim=1) > 0).all()
    for loss in (0.05, 0.5):
        other = Screen(screen.low, screen.size, screen.lost + loss * torch.rand(90))
        again = kernels.topk(rows, W, b, other, 7, None)
        assert torch.equal(pre, again[0])
        assert torch.equal(latents, again[1])


def test_of_tied_latents_the_first_are_kept(kernels: Any) -> None:
    x, W = torch.ones(1, 3), torch.ones(12, 3)
    W[5] *= 2
    _, latents = run(kernels, x, W, torch.zeros(12), 4)
    assert latents.tolist() == [[0, 1, 2, 5]]


def test_no_rows(kernels: Any) -> None:
    pre, latents = run(kernels, torch.empty(0, 4), torch.randn(5, 4), torch.zeros(5), 2)
    assert pre.shape == latents.shape == (0, 2)


def test_the_kth_largest_of_rows_longer_than_a_block(
    part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kth = part("kth")
    values = torch.randn(2, 50)
    values[0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    monkeypatch.setattr(kth, "_BLOCK", 16)
    ranked = values.nan_to_num(nan=0.0, posinf=float("inf"), neginf=0.0).relu().sort(dim=1, descending=True).values
    assert torch.equal(kth.kth(values, 5), ranked[:, 4])
    assert torch.equal(kth.kth(values, 50), torch.zeros(2))
    some = torch.tensor([20, 0], dtype=torch.int32)
    assert kth.kth(values, 2, some).tolist() == [values[0, :20].nan_to_num(0.0).sort().values[-2].item(), 0.0]


def test_groups_follow_width_and_k(part: Callable[[str], Any]) -> None:
    topk = part("topk")
    sizes = {(131072, 100): 32, (16384, 100): 16, (16384, 32): 32, (8, 8): 1, (1, 1): 1}
    for (width, k), size in sizes.items():
        assert topk.group_size(width, k) == size
    assert topk.list_capacity(100) == 512
