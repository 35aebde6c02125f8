"""Rows and encoders in the screen's precision, against torch's rounding and float64 norms.

Shape letters: B rows, D width.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.kernels.backend import InputRows, Screen
from tests.support.triton_oracle import rounded, unscaled

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def check(found: InputRows | Screen, x: Tensor) -> None:
    """Checks norms, float16 rounding, and the norms of the rounding errors, of rows x."""
    torch.testing.assert_close(found.size.double(), x.double().norm(dim=1), rtol=1e-6, atol=0)
    low = rounded(x, found.size)
    assert found.low.dtype == torch.float16
    assert torch.equal(unscaled(found.low, found.size), low)
    torch.testing.assert_close(found.lost.double(), (x.double() - low).norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("centred", [True, False])
def test_rows(kernels: Any, dtype: torch.dtype, centred: bool) -> None:
    x, centre = torch.randn(3, 37).to(dtype), torch.randn(37) if centred else None
    rows = kernels.rows(x, centre)
    expected = x.float() if centre is None else x.float() - centre
    assert rows.x.dtype == torch.float32
    assert torch.equal(rows.x, expected)
    check(rows, expected)


def test_rows_apart_in_memory(kernels: Any) -> None:
    x = torch.randn(8, 5)
    for strided in (x[::2], x.T, x[:, 1:4]):
        rows = kernels.rows(strided, None)
        assert rows.x.is_contiguous()
        assert torch.equal(rows.x, strided)
        check(rows, strided)


def test_float32_rows_are_not_copied_for_nothing(kernels: Any) -> None:
    x = torch.randn(2, 5)
    assert kernels.rows(x, None).x.data_ptr() == x.data_ptr()
    assert kernels.rows(torch.empty(0, 5), None).low.shape == (0, 5)


def test_rounding_to_nearest_even(kernels: Any) -> None:
    """Ties rounded up and down, a carry, and numbers that are subnormal or 0 in float16."""
    x = torch.tensor([[1.0, 2.0**-11 + 2.0**-21, 2.0**-11 + 2.0**-22, 2.0**-1 - 2.0**-13, 3e-6, -1e-8, 0.0, -0.0]])
    check(kernels.rows(x, None), x)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-5, 1e5, 1e20, 1e30])
def test_norms_and_halves_neither_vanish_nor_overflow(kernels: Any, scale: float) -> None:
    x = torch.randn(2, 9) * scale
    check(kernels.rows(x, None), x)


def test_a_row_with_nan_has_no_norm_and_zeros_have_norm_zero(kernels: Any) -> None:
    rows = kernels.rows(torch.tensor([[0.0, 0.0], [float("nan"), 1.0]]), None)
    assert rows.size[0] == 0
    assert rows.lost[0] == 0
    assert rows.size[1].isnan()


def test_rows_wider_than_a_block(kernels: Any, part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    x, centre = torch.randn(2, 40), torch.randn(40)
    whole = kernels.rows(x, centre)
    monkeypatch.setattr(part("rows"), "_BLOCK", 16)
    blocks = kernels.rows(x, centre)
    assert torch.equal(whole.low, blocks.low)
    torch.testing.assert_close(whole.size, blocks.size)
    torch.testing.assert_close(whole.lost, blocks.lost)


def test_the_screen_of_an_encoder(kernels: Any) -> None:
    W = torch.randn(6, 11)
    check(kernels.screen(torch.nn.Parameter(W)), W)
