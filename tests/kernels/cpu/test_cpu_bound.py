"""The bound on the screen's error holds, on numbers made to break it, and it is not much too wide.

Shape letters: B rows, D input width, F latents.
"""

from typing import Any

import numba
import numpy as np
import pytest
import torch
from cpu_oracle import DTYPES, PROPERTY, Case, cases, draw, kernels
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.cpu.arithmetic import kth_largest, widen
from panscope.kernels.cpu.arrays import Buffers, array
from panscope.kernels.cpu.bound import GROUP, can_screen, highest, row_bound
from panscope.kernels.cpu.product import Question, place, screen

OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract"}, "error_model": "numpy", "_nrt": False}


@numba.njit(**OPTIONS)
def bounds(screened: Any, size: Any, lost: Any, terms: Any, scores: Any, most: Any) -> None:
    """scores and most [B, F]: the screened scores and the upper bounds; infinite where the row is not screened."""
    for b in range(scores.shape[0]):
        a, c, z = row_bound(size[b], lost[b], terms)
        for f in range(scores.shape[1]):
            product = screened.products[place(screened, b, f, scores.shape[1])]
            scores[b, f] = widen(product) * terms.scale[f] + terms.shift[f]
            screens = can_screen(size[b], a, c, terms)
            most[b, f] = highest(f, scores[b, f], a, c, z, terms) if screens else np.float32(np.inf)


def screened(
    dtype: torch.dtype, case: Case, scale: Tensor | None = None, floor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[B, F] float64: the screened scores, and by how much the exact ones may exceed or undercut them.

    With it goes that each group's maximum is at least its latents' scores with their bounds.
    """
    kernel = kernels(dtype)
    question = Question(kernel.rows(case.x, None), case.W_enc, case.b_enc, kernel.screen(case.W_enc), scale, floor)
    scores, most = (torch.empty(len(case.x), len(case.W_enc)) for _ in range(2))
    found, rows = screen(question, 0, len(case.x), Buffers()), question.rows
    bounds(found, array(rows.size), array(rows.lost), question.terms, array(scores), array(most))
    maxima = torch.from_numpy(found.maxima).repeat_interleave(GROUP, dim=1)[:, : len(case.W_enc)]
    rounding = float(question.terms.rounding)
    assert ((most <= maxima * (1 + rounding) * (1 + 2.0**-20)) | (most <= 0) | most.isinf() | (scores < 0)).all()
    return scores.double(), (most.double() - scores.double()).masked_fill(most.isinf(), torch.inf)


@given(cases(rows=20, width=300, latents=40), st.booleans(), st.booleans(), st.sampled_from(DTYPES))
@PROPERTY
def test_no_exact_score_is_further_away(case: Case, scaled: bool, floored: bool, dtype: torch.dtype) -> None:
    """Large means, heavy tails, numbers near both ends of float32's range; with scales and floors too."""
    F = len(case.W_enc)
    scale, floor = torch.rand(F) * 3 if scaled else None, draw("normal", 9, F) if floored else None
    found, reach = screened(dtype, case, scale, floor)
    exact = case.exact() * (1 if scale is None else scale) - (0 if floor is None else floor)
    assert ((exact - found).abs()[reach.isfinite()] <= reach[reach.isfinite()]).all()
    assert reach.isnan().sum() == 0


@pytest.mark.parametrize("D", [1, 2, 31, 512, 4097])
def test_numbers_that_round_the_wrong_way(D: int) -> None:
    """Every operand just under or over the middle between two bfloat16, all products of one sign: errors add up."""
    for direction in (1, -1):
        x = torch.full((3, D), 1 + 2.0**-8 * (1 + direction * 2.0**-10))
        W_enc = x * torch.tensor([[1.0], [2.0], [0.5]])
        W_enc[1, D // 2 :] *= -1
        case = Case(x, W_enc, torch.zeros(3))
        found, reach = screened(torch.bfloat16, case)
        far = (case.exact() - found).abs()
        assert (far <= reach).all()
        assert far[0, 0] > reach[0, 0] / 10, "else this test shows nothing"


def test_the_bound_is_near_what_rounding_does() -> None:
    """On ordinary rows it is some standard deviations wide, not hundreds: what is screened out stays screened out."""
    case = Case(draw("normal", 0, 50, 512), draw("normal", 1, 500, 512), torch.zeros(500))
    found, reach = screened(torch.bfloat16, case)
    assert reach.mean() < 40 * (case.exact() - found).std()
    assert reach.mean() < 0.2 * case.exact().std()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_may_overflow_are_not_screened(dtype: torch.dtype) -> None:
    case = Case(torch.tensor([[1e20], [1.0], [1e-20]]), torch.tensor([[1e20], [1.0]]), torch.zeros(2))
    assert screened(dtype, case)[1].isfinite().tolist() == [[False, False], [True, True], [True, True]]
    for bad in (torch.nan, torch.inf):
        assert not screened(dtype, Case(case.x, torch.tensor([[1.0], [bad]]), case.b_enc))[1].isfinite().any()
        assert not screened(dtype, Case(case.x, case.W_enc, torch.tensor([0, bad])))[1].isfinite().any()


@numba.njit(**OPTIONS)
def _kth(keys: Any, count: Any, k: Any) -> Any:
    return kth_largest(keys, count, k)


@given(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 4), min_size=1, max_size=200), st.data())
@PROPERTY
def test_kth_largest(numbers: list[int], data: st.DataObject) -> None:
    """At least k keys reach it; one more than it is reached by fewer, unless it separates exactly k."""
    k = data.draw(st.integers(1, len(numbers)))
    numbers = [min(number, 0x7F800000) for number in numbers]
    keys = np.full(len(numbers) + 64, 0x7F800000, np.int32)
    keys[: len(numbers)] = numbers
    threshold = int(_kth(keys, len(numbers), k))
    reached = sum(number >= threshold for number in numbers)
    assert reached == k or (reached > k and sum(number > threshold for number in numbers) < k)
