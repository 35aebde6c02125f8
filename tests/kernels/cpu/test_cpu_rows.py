"""Centred rows, and rows and encoders in bfloat16, against torch in float64.

Shape letters: B rows, D width.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.cpu_oracle import DTYPES, KINDS, PROPERTY, draw, kernels

SIZES = st.tuples(st.integers(0, 40), st.integers(1, 90))


def nearly(found: Tensor, expected: Tensor) -> bool:
    """Equal up to float32 rounding, also for subnormal numbers."""
    return torch.allclose(found.double(), expected, rtol=2.0**-22, atol=2.0**-148)


@given(SIZES, st.sampled_from(KINDS), st.integers(0, 99), st.sampled_from(DTYPES), st.booleans())
@PROPERTY
def test_rows(shape: tuple[int, int], kind: str, seed: int, dtype: torch.dtype, centred: bool) -> None:
    x = draw(kind, seed, *shape)
    centre = draw(kind, seed + 1, shape[1]) if centred else None
    rows = kernels(dtype, 2).rows(x, centre)
    expected = x if centre is None else x - centre
    assert rows.x.equal(expected)
    assert rows.low.equal(expected.to(dtype))
    assert nearly(rows.size, expected.double().norm(dim=1))
    assert nearly(rows.lost, (expected.double() - rows.low.double()).norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_other_precisions(dtype: torch.dtype) -> None:
    """The difference is rounded to float32 once: float64 rows are not rounded before."""
    x, centre = torch.randn(20, 9).to(dtype), torch.randn(9)
    if dtype == torch.float64:
        x += 1e6
        centre += 1e6
    for middle in (None, centre):
        expected = x.double() - (0 if middle is None else middle.double())
        rows = kernels().rows(x, middle)
        assert rows.x.dtype == torch.float32
        assert rows.x.equal(expected.float())


def test_rows_are_not_copied_without_need() -> None:
    x = torch.randn(4, 3)
    assert kernels().rows(x, None).x.data_ptr() == x.data_ptr()
    by_float32 = kernels(torch.float32).rows(x, None)
    assert by_float32.low is by_float32.x
    strided = torch.randn(3, 4).T
    assert kernels().rows(strided, None).x.equal(strided)
    assert kernels().rows(strided, None).x.is_contiguous()


@given(SIZES, st.sampled_from(KINDS), st.integers(0, 99), st.sampled_from(DTYPES))
@PROPERTY
def test_screen(shape: tuple[int, int], kind: str, seed: int, dtype: torch.dtype) -> None:
    W_enc = draw(kind, seed, *shape)
    screen = kernels(dtype, 2).screen(W_enc)
    assert screen.low.equal(W_enc.to(dtype))
    assert nearly(screen.size, W_enc.double().norm(dim=1))
    assert nearly(screen.lost, (W_enc.double() - screen.low.double()).norm(dim=1))
    if dtype == torch.float32:
        assert screen.low.data_ptr() == W_enc.data_ptr() or not len(W_enc)


def test_rounding_is_torchs_for_every_upper_half_and_tie() -> None:
    """All 65536 bfloat16 values with seven lower halves each: just above and below, the tie and both sides of it."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int64).mul(2**16)
    bits = torch.stack([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFE, 0xFFFF)], dim=1)
    numbers = bits.to(torch.int32).view(torch.float32)
    low = kernels().screen(numbers).low
    same = low.view(torch.int16) == numbers.bfloat16().view(torch.int16)
    assert (same | numbers.isnan()).all()
    assert low[numbers.isnan()].isnan().all()


def test_bad_rows_say_so() -> None:
    """The norm of a row with NaN is NaN, that of a row with infinity infinite; other norms are finite."""
    x = torch.ones(3, 4)
    x[0, 1], x[2, 0] = torch.nan, -torch.inf
    rows = kernels().rows(x, None)
    assert rows.size[0].isnan()
    assert rows.size[1] == 2
    assert rows.size[2] == torch.inf
    assert not rows.lost[[0, 2]].isfinite().any()
