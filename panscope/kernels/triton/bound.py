"""How far a screened score can be from the true one, and the order candidates are found in.

With s = x.w, the stored copies x' and w', and s' = the float16 result for x'.w' (all with their scales undone):

    |s' - s| <= |x - x'| |w| + |x'| |w - w'| + 2^-11 (1 + 2^-7) |s'| + (D + 64) 2^-23 |x'| |w'|

by Cauchy-Schwarz; the third term is the rounding of the result, the last that of float32 sums, in any order and also
when tensor cores truncate (64 is room for results below float16's range). All of it is taken 0.1 % larger, and numbers
below float32's range are allowed for. What is not finite bounds nothing: such a place is a candidate, its exact value
decides.

Products and sums are fused explicitly: the compiler must not do it in one kernel and not in another, since what one
finds to be above a limit has to be above it in the next.

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
"""Share of a bias that adding and multiplying in float32 may lose."""
_MORE = tl.constexpr(1.001)
"""Norms and the bound itself are computed in float32."""
_VANISHED = tl.constexpr(1e-17)
"""More than the norm of what is too small to be squared in float32; times 1e-16, more than products may lose to 0."""


class Latent(NamedTuple):
    """What a candidate's score depends on besides the product; arguments of kernels, in this order."""

    b_enc: Tensor
    """[F]."""
    size: Tensor
    """[F] |w|."""
    lost: Tensor
    """[F] |w - w'|."""
    against: Tensor | None
    """[F] norms that multiply a score, or the floor it has to reach."""


@dataclass(frozen=True)
class Screened:
    """A chunk of rows with its screened scores, and what bounds their error."""

    part: slice
    """Which rows of the batch they are."""
    rows: InputRows
    """[R, D]."""
    product: Tensor
    """[R, F] float16, scaled, without biases."""
    latent: Latent
    sums: float
    """What sums may lose, as a share of |x'| |w'|."""


def screened(rows: InputRows, screen: Screen, latent: Latent, beside: int) -> Iterator[Screened]:
    """The batch in chunks that share one buffer; `beside` as in `product.chunks`."""
    sums = (rows.x.shape[1] + 64) * 2.0**-23
    for part, product in chunks(rows, screen, beside):
        chunk = InputRows(rows.x[part], rows.low[part], rows.size[part], rows.lost[part])
        yield Screened(part, chunk, product, latent, sums)


@triton.jit
def of_row(size, lost, sums):
    """What a row multiplies a latent's norm by, and its loss (both 0 for a row of zeros), and its product."""
    near = size + lost
    for_size = (tl.fma(sums, near, lost) + tl.where(near > 0, 1e-16, 0.0)) * _MORE
    return for_size, near * _MORE * (1.0 + sums), unscale(size)


@triton.jit
def of_latents(b_enc, sizes, losts, f, live):
    """Bias with what rounding may add to it, norm, loss and scale of the latents f; of no use where not `live`."""
    b = tl.load(b_enc + f, mask=live, other=0.0)
    size = tl.load(sizes + f, mask=live, other=0.0)
    lost = tl.load(losts + f, mask=live, other=0.0)
    return tl.fma(tl.abs(b), _BIAS, b), size + _VANISHED, lost + _VANISHED, unscale(size)


@triton.jit
def order(s, b, size, lost, undo, against, for_size, for_lost, for_undo, FLOOR: tl.constexpr):  # noqa: PLR0913
    """An upper bound of x.w + b, times `against` (norms), or less `against` if FLOOR; infinite where it would be NaN.

    s and `against` as loaded; b, size, lost, undo from `of_latents`; for_size, for_lost, for_undo from `of_row`.
    """
    s = s.to(tl.float32) * (undo * for_undo)
    best = tl.fma(lost, for_lost, tl.fma(size, for_size, tl.fma(tl.abs(s), _ROUNDING, s) + b))
    if against is not None:
        best = best - against if FLOOR else best * against
    return tl.where(best == best, best, float("inf"))


@triton.jit
def ordered(product, f, live, b_enc, sizes, losts, against, row_size, row_lost, sums, FLOOR: tl.constexpr):  # noqa: PLR0913
    """`order` of the latents f of the row that `product` points to; -inf where not `live`."""
    s = tl.load(product + f, mask=live, other=0.0)
    b, size, lost, undo = of_latents(b_enc, sizes, losts, f, live)
    for_size, for_lost, for_undo = of_row(row_size, row_lost, sums)
    other = against if against is None else tl.load(against + f, mask=live, other=0.0)
    best = order(s, b, size, lost, undo, other, for_size, for_lost, for_undo, FLOOR)
    return tl.where(live, best, -float("inf"))
