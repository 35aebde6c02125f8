"""Bounds of the error of screened scores, which decide which latents can be skipped.

A screened score is v = p * scale + shift with p the computed product of low(x) and low(w); the exact score is
(x . w + b) * scale - floor. Their difference is at most the sum of

* lost_x |w| + |low(x)| lost_w: rounding of the operands (Cauchy-Schwarz);
* D 2^-23 |x| |w|: float32 accumulation of the product and of the exact pre-activation, each at most D 2^-24;
* 2^-8 |p|: rounding of p to bfloat16;
* 2^-20 (|v| + |b| + |floor|): the few other float32 operations, with a margin;
* terms of the order of 2^-126, since bfloat16 products may flush subnormal numbers to 0;

times `scale` where it applies. If any of it overflows or is NaN, no latent is skipped.

Shape letters: B rows, D input width, F latents, G groups of `GROUP` consecutive latents, of which the last may be
smaller.
"""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from panscope.kernels.backend import Screen
from panscope.kernels.cpu.arithmetic import ONE, ZERO, bits_of, from_bits, widen
from panscope.kernels.cpu.arrays import array
from panscope.kernels.cpu.compiled import inlined, kernel

GROUP = 32
"""Latents that are processed together: the number of bits of a word."""
_MARGIN = np.float32(1 + 2**-6)
"""Margin for the rounding of norms and of the bound itself, and for the use of |x| in place of |low(x)|."""
_SMALLEST_NORMAL = 2.0**-126
_OVERFLOW = 1e37
_FLOAT32, _BFLOAT16 = 2.0**-20, 2.0**-8


class Terms(NamedTuple):
    """The latents' terms of scores and bounds."""

    scale: Any
    """[F] float32."""
    shift: Any
    """[F] float32: b * scale - floor."""
    bound: Any
    """[F, 3] float32 per latent: its reach |w| * scale, a factor of the row's `lost`; its loss lost_w * scale, a factor
    of the row's norm; its slack, which does not depend on the row."""
    group_bound: Any
    """[3, G] the maximum of each group."""
    most: Any
    """[5] float64: the largest |w|, reach, loss, slack and |shift|."""
    accumulation: np.float32
    """D 2^-23."""
    flush: np.float32
    """Maximal error of a product whose operand is flushed to 0, if the other operand has norm 1."""
    tiny: np.float32
    """Maximal error of products that are flushed to 0."""
    rounding: np.float32
    """Maximal relative error of the rounding of v."""


def latent_terms(screen: Screen, b_enc: Tensor, scale: Tensor | None, floor: Tensor | None) -> Terms:
    """The terms of latents with biases [F] and scores (pre-activation * `scale` [F]) - `floor` [F]."""
    bias, size, lost = array(b_enc), array(screen.size), array(screen.lost)
    factor = np.ones_like(bias) if scale is None else array(scale)
    ground = np.zeros_like(bias) if floor is None else array(floor)
    width = screen.low.shape[1]
    rounded = screen.low.element_size() < 4
    rounding = np.float32(_FLOAT32 + (_BFLOAT16 if rounded else 0))
    flush = np.float32(width**0.5 * _SMALLEST_NORMAL)
    bound = np.empty((len(bias), 3), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        shift = bias * factor - ground
        bound[:, 0], bound[:, 1] = size * factor, (lost + flush) * factor
        bound[:, 2] = rounding * np.abs(shift) + np.float32(_FLOAT32) * (np.abs(bias) * factor + np.abs(ground))
        bound[:, 2] *= _MARGIN
    group_bound = np.ascontiguousarray(np.maximum.reduceat(bound, np.arange(0, len(bias), GROUP)).T)
    most = np.array([size.max(), *group_bound.max(axis=1), np.abs(shift).max()], np.float64)
    tiny = np.float32(2 * (width + 2) * _SMALLEST_NORMAL * max(1.0, float(factor.max())))
    accumulation = np.float32(width * 2.0**-23)
    return Terms(factor, shift, bound, group_bound, most, accumulation, flush, tiny, rounding)


@inlined
def row_bound(size: Any, lost: Any, terms: Any) -> Any:
    """A row's factors a of reach and c of loss, and its constant z, given its norm and loss: (a, c, z)."""
    if size == 0:
        return ZERO, ZERO, ZERO
    return (
        (lost + terms.flush + terms.accumulation * size) * _MARGIN,
        (size + lost) * _MARGIN,
        terms.tiny,
    )


@inlined
def can_screen(size: Any, a: Any, c: Any, terms: Any) -> Any:
    """Whether all scores and bounds of this row are finite."""
    most, norm = terms.most, np.float64(size)
    bound = a * most[1] + c * most[2] + most[3]
    return norm * most[0] + norm * most[1] + most[4] + bound < _OVERFLOW


@inlined
def lift(g: Any, a: Any, c: Any, z: Any, terms: Any) -> Any:
    """The error bound of group g, without the part that is relative to the score."""
    return a * terms.group_bound[0, g] + c * terms.group_bound[1, g] + terms.group_bound[2, g] + z


@kernel
def raise_maxima(products: Any, first: Any, begin: Any, size: Any, lost: Any, terms: Any, maxima: Any) -> None:
    """Write the maxima [B, G] of a block: the largest screened score of each group plus its lift, or 0 if negative.

    `products` [n, m] are those of the rows from `first` on and the latents from `begin` on.
    """
    rows, width = products.shape
    whole, group = width // GROUP, begin // GROUP
    scale, shift = terms.scale[begin : begin + width], terms.shift[begin : begin + width]
    for r in range(rows):
        a, c, z = row_bound(size[first + r], lost[first + r], terms)
        row, found = products[r], maxima[r, group:]
        for n in range(-(-width // GROUP)):
            found[n] = lift(group + n, a, c, z, terms)
        for n in range(whole):
            found[n] = _largest(row, n * GROUP, GROUP, scale, shift, found[n])
        if whole * GROUP < width:
            found[whole] = _largest(row, whole * GROUP, width - whole * GROUP, scale, shift, found[whole])


@inlined
def _largest(products: Any, begin: Any, count: Any, scale: Any, shift: Any, raised: Any) -> Any:
    """The largest raised score of `count` latents; `count` is usually a constant, so that the loop vectorises.

    Positive floats have the order of their bits, and negative ones have negative bits.
    """
    end, largest = begin + count, np.int32(0)
    products, scale, shift = products[begin:end], scale[begin:end], shift[begin:end]
    for n in range(count):
        score = widen(products[n]) * scale[n] + (shift[n] + raised)
        largest = max(largest, bits_of(score))
    return from_bits(largest)


@inlined
def lowest(maximum: Any, raised: Any, terms: Any) -> Any:
    """A lower bound of the best exact score of a group, from its raised maximum; 0 if negative."""
    return max((maximum - raised) * (ONE - terms.rounding) - raised, ZERO)


@inlined
def highest(f: Any, score: Any, a: Any, c: Any, z: Any, terms: Any) -> Any:
    """An upper bound of the exact score of latent f, from the screened one."""
    return score + terms.rounding * abs(score) + a * terms.bound[f, 0] + c * terms.bound[f, 1] + terms.bound[f, 2] + z


@inlined
def passing(products: Any, place: Any, f: Any, raised: Any, terms: Any, floor: Any) -> Any:
    """The latents of the group that starts at f whose exact score may reach `floor`, by the group's lift, as bits of a
    word; the group's products start at `place`."""
    if f + GROUP <= len(terms.scale):
        return _reaching(products, place, f, GROUP, raised, terms, floor)
    return _reaching(products, place, f, len(terms.scale) - f, raised, terms, floor)


@inlined
def _reaching(products: Any, place: Any, f: Any, count: Any, raised: Any, terms: Any, floor: Any) -> Any:
    some, scale, shift = products[place : place + count], terms.scale[f : f + count], terms.shift[f : f + count]
    word = np.int32(0)
    for n in range(count):
        score = widen(some[n]) * scale[n] + shift[n]
        word = np.int32(word | (np.int32(score + terms.rounding * abs(score) + raised >= floor) << n))
    return word


@inlined
def everything(latents: Any, work: Any) -> Any:
    """List and choose all latents, for a row whose scores have no bound; returns their number."""
    for f in range(latents):
        work.candidates[f] = f
        work.chosen[f] = f
    return latents
