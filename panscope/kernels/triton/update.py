"""Gradient, projection, Adam, unit norm and the screen's row in one pass over a matrix: one program per latent.

Weights and moments are read once and written once, and the gradient stays in registers. Weights and moments are loaded
after the entries' rows are summed, so that registers are free for several of those rows at once. Latents without
entries are updated as well: their moments decay and their weights move, as in torch's Adam.

Shape letters: F latents, D width of the matrix.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.backend import AdamStep, Finish, Gradient
from panscope.kernels.triton import launch
from panscope.kernels.triton.gradient import entries_row, others_row, parts
from panscope.kernels.triton.half import scale as scale_of
from panscope.kernels.triton.half import unscale

WIDEST = 8192
"""Columns that a program can keep in registers; wider rows are read again for each operation on the whole row."""
_TINY = tl.constexpr(1.1754943508222875e-38)


class _Rates(NamedTuple):
    """Adam's constants of one step, as arguments of kernels."""

    rate: float
    """Learning rate divided by the bias correction of the first moment."""
    towards: float
    """1 - beta1."""
    beta2: float
    rest: float
    """1 - beta2."""
    root: float
    """Square root of the bias correction of the second moment."""
    eps: float


def update(W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, adam: AdamStep, finish: Finish) -> None:
    """One step on W [F, D] with moments m, v [F, D], in place."""
    count, width = W.shape
    for name, tensor in (("W", W), ("m", m), ("v", v)):
        launch.checked(name, tensor, count, width)
    block = min(WIDEST, launch.padded(width))
    kernel = _update if width <= WIDEST else _update_wide
    kernel[(count,)](
        W, m, v, width, adam.scale, adam.ok.view(torch.uint8), *_rates(adam), *_screen(finish), finish.norms,
        *parts(W, gradient), PROJECT=finish.project, UNIT=finish.unit, BLOCK=block, num_warps=launch.warps(block),
    )  # fmt: skip


def _rates(adam: AdamStep) -> _Rates:
    first, second = 1 - adam.beta1**adam.step, 1 - adam.beta2**adam.step
    return _Rates(adam.learning_rate / first, 1 - adam.beta1, adam.beta2, 1 - adam.beta2, math.sqrt(second), adam.eps)


def _screen(finish: Finish) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The screen's rows [F, D], norms [F] and norms of the rounding errors [F]."""
    return (None, None, None) if finish.screen is None else (finish.screen.low, finish.screen.size, finish.screen.lost)


@triton.jit
def _update(  # noqa: PLR0913
    W, m, v, D, scale, ok, rate, towards, beta2, rest, root, eps, low, size, lost, norms,
    starts, coefficients, places, source, sums, shift, radial, extra_index, extra,
    PROJECT: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    f = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    live = column < D
    at = f * D + column
    go, factor = tl.load(ok) != 0, tl.load(scale)
    g = entries_row(f, column, D, starts, coefficients, places, source, sums, shift, BLOCK)
    w = tl.load(W + at, mask=live, other=0.0)
    first, second = tl.load(m + at, mask=live, other=0.0), tl.load(v + at, mask=live, other=0.0)
    g = others_row(g, w, f, column, D, radial, extra_index, extra)
    if PROJECT:
        g -= tl.sum(g * w, axis=0) * w
    w, first, second = _adam(w, first, second, g * factor, rate, towards, beta2, rest, root, eps)
    w = tl.where(live, w, 0.0)
    if UNIT:
        w = w / tl.maximum(tl.sqrt(tl.sum(w * w, axis=0)), _TINY)
    tl.store(W + at, w, mask=live & go)
    tl.store(m + at, first, mask=live & go)
    tl.store(v + at, second, mask=live & go)
    if low is not None or norms is not None:
        norm = tl.sqrt(tl.sum(w * w, axis=0))
        if norms is not None:
            tl.store(norms + f, norm, mask=go)
        if low is not None:
            half, loss = _narrowed(w, norm)
            tl.store(low + at, half, mask=live & go)
            tl.store(size + f, norm, mask=go)
            tl.store(lost + f, tl.sqrt(tl.sum(loss * loss, axis=0)) * unscale(norm), mask=go)


@triton.jit
def _update_wide(  # noqa: PLR0913
    W, m, v, D, scale, ok, rate, towards, beta2, rest, root, eps, low, size, lost, norms,
    starts, coefficients, places, source, sums, shift, radial, extra_index, extra,
    PROJECT: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_update` for rows wider than WIDEST, in blocks of columns."""
    if tl.load(ok) == 0:
        return
    f = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    along, squares = 0.0, 0.0
    if PROJECT:
        for begin in range(0, D, BLOCK):
            column = begin + lane
            g = entries_row(f, column, D, starts, coefficients, places, source, sums, shift, BLOCK)
            w = tl.load(W + f * D + column, mask=column < D, other=0.0)
            g = others_row(g, w, f, column, D, radial, extra_index, extra)
            along += tl.sum(g * w, axis=0)
    for begin in range(0, D, BLOCK):
        column = begin + lane
        live = column < D
        at = f * D + column
        g = entries_row(f, column, D, starts, coefficients, places, source, sums, shift, BLOCK)
        w = tl.load(W + at, mask=live, other=0.0)
        first, second = tl.load(m + at, mask=live, other=0.0), tl.load(v + at, mask=live, other=0.0)
        g = others_row(g, w, f, column, D, radial, extra_index, extra)
        if PROJECT:
            g -= along * w
        g *= tl.load(scale)
        w, first, second = _adam(w, first, second, g, rate, towards, beta2, rest, root, eps)
        w = tl.where(live, w, 0.0)
        squares += tl.sum(w * w, axis=0)
        tl.store(W + at, w, mask=live)
        tl.store(m + at, first, mask=live)
        tl.store(v + at, second, mask=live)
    _finish_wide(W, D, f, squares, low, size, lost, norms, UNIT, BLOCK)


@triton.jit
def _finish_wide(W, D, f, squares, low, size, lost, norms, UNIT: tl.constexpr, BLOCK: tl.constexpr):  # noqa: PLR0913
    """Apply unit norm, norms and screen to a row that has just been written."""
    lane = tl.arange(0, BLOCK)
    tl.debug_barrier()
    if UNIT:
        divisor, squares = tl.maximum(tl.sqrt(squares), _TINY), 0.0
        for begin in range(0, D, BLOCK):
            column = begin + lane
            w = tl.load(W + f * D + column, mask=column < D, other=0.0) / divisor
            squares += tl.sum(w * w, axis=0)
            tl.store(W + f * D + column, w, mask=column < D)
        tl.debug_barrier()
    norm, losses = tl.sqrt(squares), 0.0
    if norms is not None:
        tl.store(norms + f, norm)
    if low is not None:
        for begin in range(0, D, BLOCK):
            column = begin + lane
            half, loss = _narrowed(tl.load(W + f * D + column, mask=column < D, other=0.0), norm)
            losses += tl.sum(loss * loss, axis=0)
            tl.store(low + f * D + column, half, mask=column < D)
        tl.store(size + f, norm)
        tl.store(lost + f, tl.sqrt(losses) * unscale(norm))


@triton.jit
def _narrowed(w, norm):
    """A row's weights in scaled float16 and their rounding errors, with the same scale."""
    scaled = w * scale_of(norm)
    half = scaled.to(tl.float16)
    return half, scaled - half.to(tl.float32)


@triton.jit
def _adam(w, first, second, g, rate, towards, beta2, rest, root, eps):  # noqa: PLR0913
    """Weights and both moments after a step along g, as torch's Adam computes them."""
    first += (g - first) * towards
    second = second * beta2 + g * g * rest
    return w - rate * first / (tl.sqrt(second) / root + eps), first, second
