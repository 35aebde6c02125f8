"""Sums over a whole gradient: of its squares, for clipping, and of the gradients of a batch's parts.

Shape letters: F latents, D width of the matrix.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.backend import Gradient
from panscope.kernels.triton import launch
from panscope.kernels.triton.gradient import entries_row, others_row, parts

_BLOCK = 8192
"""Columns processed at a time."""


def squared_norm(W: Tensor, gradient: Gradient, project: bool) -> Tensor:
    """[] float64: the sum is in float32 within a row of W [F, D] and in float64 over rows."""
    count, width = W.shape
    launch.checked("W", W, count, width)
    squares = torch.empty(count, dtype=torch.float32, device=W.device)
    block = min(_BLOCK, launch.padded(width))
    _squares[(count,)](
        W, squares, width, *parts(W, gradient), PROJECT=project, BLOCK=block, num_warps=launch.warps(block)
    )
    return squares.sum(dtype=torch.float64)


def add_gradient(W: Tensor, gradient: Gradient, total: Tensor) -> None:
    """Add the gradient of W [F, D] to `total` [F, D], in place."""
    count, width = W.shape
    for name, tensor in (("W", W), ("total", total)):
        launch.checked(name, tensor, count, width)
    block = min(_BLOCK, launch.padded(width))
    _add_rows[(count,)](W, total, width, *parts(W, gradient), BLOCK=block, num_warps=launch.warps(block))


@triton.jit
def _add_rows(  # noqa: PLR0913
    W, total, D, starts, coefficients, places, source, sums, shift, radial, extra_index, extra, BLOCK: tl.constexpr
):
    f = tl.program_id(0).to(tl.int64)
    for first in range(0, D, BLOCK):
        column = first + tl.arange(0, BLOCK)
        live = column < D
        g = entries_row(f, column, D, starts, coefficients, places, source, sums, shift, BLOCK)
        w = tl.load(W + f * D + column, mask=live, other=0.0)
        g = others_row(g, w, f, column, D, radial, extra_index, extra)
        at = total + f * D + column
        tl.store(at, tl.load(at, mask=live, other=0.0) + g, mask=live)


@triton.jit
def _squares(  # noqa: PLR0913
    W, squares, D, starts, coefficients, places, source, sums, shift, radial, extra_index, extra,
    PROJECT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    along = 0.0
    if PROJECT:
        for first in range(0, D, BLOCK):
            column = first + lane
            g = entries_row(f, column, D, starts, coefficients, places, source, sums, shift, BLOCK)
            w = tl.load(W + f * D + column, mask=column < D, other=0.0)
            g = others_row(g, w, f, column, D, radial, extra_index, extra)
            along += tl.sum(g * w, axis=0)
    total = 0.0
    for first in range(0, D, BLOCK):
        column = first + lane
        g = entries_row(f, column, D, starts, coefficients, places, source, sums, shift, BLOCK)
        w = tl.load(W + f * D + column, mask=column < D, other=0.0)
        g = others_row(g, w, f, column, D, radial, extra_index, extra)
        if PROJECT:
            g -= along * w
        total += tl.sum(g * g, axis=0)
    tl.store(squares + f, total)
