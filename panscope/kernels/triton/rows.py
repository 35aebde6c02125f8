"""Conversion of rows to the screen's precision, with their norms and the norms of the rounding errors.

The same kernel processes a batch (which it centres) and an encoder. One program per row reads it three times, from
cache after the first.

Shape letters: R rows of either, D their width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.backend import InputRows, Screen
from panscope.kernels.triton import launch
from panscope.kernels.triton.half import scale, unscale

_BLOCK = 4096
"""Columns processed at a time."""


def rows(x: Tensor, centre: Tensor | None) -> InputRows:
    """x [B, D] - centre [D], in float32 and scaled float16; not copied if x is contiguous float32 without centre."""
    same = centre is None and x.dtype == torch.float32 and x.is_contiguous()
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x if same else torch.empty(x.shape, dtype=torch.float32, device=x.device)
    return InputRows(out, *_to_half(x, centre, None if same else out))


def screen(W_enc: Tensor) -> Screen:
    """W_enc [F, D] in scaled float16, with norms."""
    return Screen(*_to_half(launch.checked("W_enc", W_enc.detach(), *W_enc.shape), None, None))


def _to_half(x: Tensor, centre: Tensor | None, out: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled float16 [R, D], norms [R] and norms of the rounding errors [R]; writes x - centre to `out`."""
    count, width = x.shape
    low = torch.empty(x.shape, dtype=torch.float16, device=x.device)
    size, lost = torch.empty(2, count, dtype=torch.float32, device=x.device)
    block = min(_BLOCK, launch.padded(width))
    if count:
        _narrow[(count,)](
            x, centre, out, low, size, lost, x.stride(0), width, BLOCK=block, num_warps=launch.warps(block)
        )
    return low, size, lost


@triton.jit
def _narrow(x, centre, out, low, size, lost, stride, D, BLOCK: tl.constexpr):  # noqa: PLR0913
    row = tl.program_id(0).to(tl.int64)
    top = 0.0
    for first in range(0, D, BLOCK):
        top = tl.maximum(top, tl.max(tl.abs(_centred(x, centre, row, stride, first, D, BLOCK)), axis=0))
    # Squares of elements divided by the largest neither overflow nor underflow.
    unit = tl.where((top > 0) & (top < float("inf")), top, 1.0)
    squares, losses = 0.0, 0.0
    for first in range(0, D, BLOCK):
        share = _centred(x, centre, row, stride, first, D, BLOCK) / unit
        squares += tl.sum(share * share, axis=0)
    norm = tl.sqrt(squares) * unit
    for first in range(0, D, BLOCK):
        value = _centred(x, centre, row, stride, first, D, BLOCK)
        half = (value * scale(norm)).to(tl.float16)
        loss = value * scale(norm) - half.to(tl.float32)
        losses += tl.sum(loss * loss, axis=0)
        column = first + tl.arange(0, BLOCK)
        tl.store(low + row * D + column, half, mask=column < D)
        if out is not None:
            tl.store(out + row * D + column, value, mask=column < D)
    tl.store(size + row, norm)
    tl.store(lost + row, tl.sqrt(losses) * unscale(norm))


@triton.jit
def _centred(x, centre, row, stride, first, D, BLOCK: tl.constexpr):
    """float32 x - centre of a row's columns, 0 beyond its end."""
    column = first + tl.arange(0, BLOCK)
    value = tl.load(x + row * stride + column, mask=column < D, other=0.0).to(tl.float32)
    if centre is not None:
        value -= tl.load(centre + column, mask=column < D, other=0.0).to(tl.float32)
    return value
