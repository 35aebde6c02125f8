"""The bound of the screen's error holds for adversarial numbers, and is not much too wide.

Shape letters: B rows, D input width, F latents.
"""

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.cpu.arithmetic import kth_largest, widen
from panscope.kernels.cpu.arrays import Buffers, array
from panscope.kernels.cpu.bound import GROUP, can_screen, highest, lift, lowest, row_bound
from panscope.kernels.cpu.product import ScreenQuery, place, screen
from tests.support.cpu_oracle import DTYPES, PROPERTY, Case, cases, draw, kernels

OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract"}, "error_model": "numpy", "_nrt": False}


@numba.njit(**OPTIONS)
def bounds(screened: Any, size: Any, lost: Any, terms: Any, scores: Any, most: Any, least: Any) -> None:
    """scores and most [B, F]: the screened scores and the upper bounds; infinite if the row is not screened.

    least [B, G]: what the groups' best have for certain.
    """
    for b in range(scores.shape[0]):
        a, c, z = row_bound(size[b], lost[b], terms)
        screens = can_screen(size[b], a, c, terms)
        for f in range(scores.shape[1]):
            product = screened.products[place(screened, b, f, scores.shape[1])]
            scores[b, f] = widen(product) * terms.scale[f] + terms.shift[f]
            most[b, f] = highest(f, scores[b, f], a, c, z, terms) if screens else np.float32(np.inf)
        for g in range(least.shape[1]):
            sure = lowest(screened.maxima[b, g], lift(g, a, c, z, terms), terms)
            least[b, g] = sure if screens else np.float32(0)


@dataclass(frozen=True)
class Found:
    """The results of screening, in float64."""

    scores: Tensor
    """[B, F]."""
    reach: Tensor
    """[B, F] the bound of their difference to the exact scores; infinite if the row is not screened."""
    most_of_group: Tensor
    """[B, F] the upper bound of the best of the latent's group, if positive."""
    least_of_group: Tensor
    """[B, G]."""


def screened(dtype: torch.dtype, case: Case, scale: Tensor | None = None, floor: Tensor | None = None) -> Found:
    kernel, (B, F) = kernels(dtype), (len(case.x), len(case.W_enc))
    query = ScreenQuery(kernel.rows(case.x, None), case.W_enc, case.b_enc, kernel.screen(case.W_enc), scale, floor)
    scores, most, least = torch.empty(B, F), torch.empty(B, F), torch.empty(B, -(-F // GROUP))
    found, rows, terms = screen(query, 0, B, Buffers()), query.rows, query.terms
    bounds(found, array(rows.size), array(rows.lost), terms, array(scores), array(most), array(least))
    maxima = torch.from_numpy(found.maxima).double() * (1 + float(terms.rounding))
    reach = (most.double() - scores.double()).masked_fill(most.isinf(), torch.inf)
    return Found(scores.double(), reach, maxima.repeat_interleave(GROUP, dim=1)[:, :F], least.double())


@given(cases(rows=20, width=300, latents=90), st.booleans(), st.booleans(), st.sampled_from(DTYPES))
@PROPERTY
def test_no_exact_score_is_further_away(case: Case, scaled: bool, floored: bool, dtype: torch.dtype) -> None:
    """Large means, heavy tails, numbers near both ends of float32's range; with scales and floors too."""
    F = len(case.W_enc)
    scale, floor = torch.rand(F) * 3 if scaled else None, draw("normal", 9, F) if floored else None
    found = screened(dtype, case, scale, floor)
    exact = case.exact() * (1 if scale is None else scale) - (0 if floor is None else floor)
    sure = found.reach.isfinite()
    assert not found.reach.isnan().any()
    # Scaling a subnormal bias rounds by half the smallest float32, also in the exact float32 scores.
    smallest = 2.0**-149
    assert ((exact - found.scores).abs()[sure] <= found.reach[sure] + smallest).all()
    assert (exact <= found.most_of_group + smallest)[sure & (exact > 0)].all()
    best = torch.stack([part.amax(dim=1) for part in exact.split(GROUP, dim=1)], dim=1)
    assert (found.least_of_group <= best.relu() + smallest).all()


@pytest.mark.parametrize("D", [1, 2, 31, 512, 4097])
def test_numbers_that_round_the_wrong_way(D: int) -> None:
    """Every operand just below or above a bfloat16 tie, all products of one sign: errors add up."""
    for direction in (1, -1):
        x = torch.full((3, D), 1 + 2.0**-8 * (1 + direction * 2.0**-10))
        W_enc = x * torch.tensor([[1.0], [2.0], [0.5]])
        W_enc[1, D // 2 :] *= -1
        case = Case(x, W_enc, torch.zeros(3))
        found = screened(torch.bfloat16, case)
        far = (case.exact() - found.scores).abs()
        assert (far <= found.reach).all()
        assert far[0, 0] > found.reach[0, 0] / 10, "else this test shows nothing"


def test_the_bound_is_near_what_rounding_does() -> None:
    """On random rows it is a few standard deviations wide, not hundreds, so the screen is effective."""
    case = Case(draw("normal", 0, 50, 512), draw("normal", 1, 500, 512), torch.zeros(500))
    found = screened(torch.bfloat16, case)
    assert found.reach.mean() < 40 * (case.exact() - found.scores).std()
    assert found.reach.mean() < 0.2 * case.exact().std()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_may_overflow_are_not_screened(dtype: torch.dtype) -> None:
    case = Case(torch.tensor([[1e20], [1.0], [1e-20]]), torch.tensor([[1e20], [1.0]]), torch.zeros(2))
    assert screened(dtype, case).reach.isfinite().tolist() == [[False, False], [True, True], [True, True]]
    for bad in (torch.nan, torch.inf):
        assert not screened(dtype, Case(case.x, torch.tensor([[1.0], [bad]]), case.b_enc)).reach.isfinite().any()
        assert not screened(dtype, Case(case.x, case.W_enc, torch.tensor([0, bad]))).reach.isfinite().any()


@numba.njit(**OPTIONS)
def _kth(keys: Any, count: Any, k: Any) -> Any:
    return kth_largest(keys, count, k)


@given(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 4), min_size=1, max_size=200), st.data())
@PROPERTY
def test_kth_largest(numbers: list[int], data: st.DataObject) -> None:
    """At least k keys reach it, and more only if they are equal to it; 0 if there are fewer."""
    k = data.draw(st.integers(1, len(numbers) + 2))
    numbers = [min(number, 0x7F800000) for number in numbers]
    keys = np.full(len(numbers) + 64, 0x7F800000, np.int32)
    keys[: len(numbers)] = numbers
    threshold = int(_kth(keys, len(numbers), k))
    reached = sum(number >= threshold for number in numbers)
    if k > len(numbers):
        assert threshold == 0
    else:
        assert reached == k or (reached > k and sum(number > threshold for number in numbers) < k)
