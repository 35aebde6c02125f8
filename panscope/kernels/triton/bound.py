"""Upper bounds of exact scores, from screened scores and the bound of their error, by which candidates are found.

With s = x.w, the stored copies x' and w', and s' = the float16 result for x'.w' (all with their scales undone):

    |s' - s| <= |x - x'| |w| + |x'| |w - w'| + 2^-11 (1 + 2^-7) |s'| + (D + 64) 2^-23 |x'| |w'|

by Cauchy-Schwarz; the third term is the rounding of the result, the last that of float32 sums, in any order and also
when tensor cores truncate (64 covers results below float16's range). The bound is increased by 0.1 %, and includes the
loss of numbers below float32's range. A latent whose bound is not finite is a candidate, and its exact value decides.

Multiply-adds are fused explicitly, because the compiler might fuse them in one kernel and not in another, and a bound
must be the same in all kernels.

Shape letters: B rows, R rows of a chunk, D input width, F latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.backend import InputRows, Screen
from panscope.kernels.triton.half import unscale
from panscope.kernels.triton.product import chunks

_ROUNDING = tl.constexpr(1.001 * (2.0**-11 * (1 + 2.0**-7)))
_BIAS = tl.constexpr(2.0**-20)
"""Relative error of a bias that is added and multiplied in float32."""
_MORE = tl.constexpr(1.001)
"""Margin for computing norms and the bound itself in float32."""
_VANISHED = tl.constexpr(1e-17)
"""Exceeds the norm of elements too small to be squared in float32; times 1e-16, the loss of products flushed to 0."""


class Latent(NamedTuple):
    """The terms of a candidate's score besides the product; arguments of kernels, in this order."""

    b_enc: Tensor
    """[F]."""
    size: Tensor
    """[F] |w|."""
    lost: Tensor
    """[F] |w - w'|."""
    against: Tensor | None
    """[F] norms that multiply the score, or the floor that is subtracted from it."""


@dataclass(frozen=True)
class Screened:
    """A chunk of rows with its screened scores and the terms of their error bound."""

    part: slice
    """The rows' slice of the batch."""
    rows: InputRows
    """[R, D]."""
    product: Tensor
    """[R, F] float16, scaled, without biases."""
    latent: Latent
    sums: float
    """Rounding error of sums, relative to |x'| |w'|."""


def screened(rows: InputRows, screen: Screen, latent: Latent, extra_bytes: int) -> Iterator[Screened]:
    """The batch in chunks that share one buffer; `extra_bytes` as in `product.chunks`."""
    sums = (rows.x.shape[1] + 64) * 2.0**-23
    for part, product in chunks(rows, screen, extra_bytes):
        chunk = InputRows(rows.x[part], rows.low[part], rows.size[part], rows.lost[part])
        yield Screened(part, chunk, product, latent, sums)


@triton.jit
def of_row(size, lost, sums):
    """A row's factors of a latent's norm and of its loss (both 0 for a row of zeros), and of the stored product."""
    near = size + lost
    for_size = (tl.fma(sums, near, lost) + tl.where(near > 0, 1e-16, 0.0)) * _MORE
    return for_size, near * _MORE * (1.0 + sums), unscale(size)


@triton.jit
def of_latents(b_enc, sizes, losts, f, live):
    """Bias plus its rounding error, norm, loss and scale of the latents f; arbitrary where not `live`."""
    b = tl.load(b_enc + f, mask=live, other=0.0)
    size = tl.load(sizes + f, mask=live, other=0.0)
    lost = tl.load(losts + f, mask=live, other=0.0)
    return tl.fma(tl.abs(b), _BIAS, b), size + _VANISHED, lost + _VANISHED, unscale(size)


@triton.jit
def order(s, b, size, lost, undo, against, for_size, for_lost, for_undo, FLOOR: tl.constexpr):  # noqa: PLR0913
    """An upper bound of (x.w + b) * `against` (norms), or x.w + b - `against` if FLOOR; infinite in place of NaN.

    s and `against` as loaded; b, size, lost, undo from `of_latents`; for_size, for_lost, for_undo from `of_row`.
    """
    s = s.to(tl.float32) * (undo * for_undo)
    best = tl.fma(lost, for_lost, tl.fma(size, for_size, tl.fma(tl.abs(s), _ROUNDING, s) + b))
    if against is not None:
        best = best - against if FLOOR else best * against
    return tl.where(best == best, best, float("inf"))


@triton.jit
def ordered(product, f, live, b_enc, sizes, losts, against, row_size, row_lost, sums, FLOOR: tl.constexpr):  # noqa: PLR0913
    """`order` of the latents f for the row that `product` points to; -inf where not `live`."""
    s = tl.load(product + f, mask=live, other=0.0)
    b, size, lost, undo = of_latents(b_enc, sizes, losts, f, live)
    for_size, for_lost, for_undo = of_row(row_size, row_lost, sums)
    other = against if against is None else tl.load(against + f, mask=live, other=0.0)
    best = order(s, b, size, lost, undo, other, for_size, for_lost, for_undo, FLOOR)
    return tl.where(live, best, -float("inf"))
