"""How far a screened score can be from the exact one: what decides which places the screen may leave out.

A screened score is v = p * scale + shift with p the product of low(x) and low(w) as it came out; the exact one is
(x . w + b) * scale - floor. Their distance is at most the sum of

* lost_x |w| + |low(x)| lost_w: what rounding the operands took away (Cauchy-Schwarz);
* D 2^-23 |x| |w|: float32 accumulation, of the product and of the exact pre-activation, each D 2^-24 at most;
* 2^-8 |p|: p was rounded to bfloat16;
* 2^-20 (|v| + |b| + |floor|): the few float32 operations on the way, some times over;
* terms of the size 2^-126, since bfloat16 products may take subnormal numbers for 0;

with `scale` where it applies. Where any of it overflows or is NaN nothing is left out.

Shape letters: B rows, D input width, F latents, G groups of `GROUP` latents in a row, the last one perhaps smaller.
"""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from panscope.kernels.backend import Screen
from panscope.kernels.cpu.arithmetic import ONE, ZERO, bits_of, from_bits, widen
from panscope.kernels.cpu.arrays import array
from panscope.kernels.cpu.compiled import inlined, kernel

GROUP = 32
"""Latents that are looked at together; the bits of a word."""
_MARGIN = np.float32(1 + 2**-6)
"""For the rounding of norms and of the bound itself, and for |low| where the norm is known."""
_SMALLEST_NORMAL = 2.0**-126
_OVERFLOW = 1e37
_FLOAT32, _BFLOAT16 = 2.0**-20, 2.0**-8


class Terms(NamedTuple):
    """What the latents bring to scores and bounds."""

    scale: Any
    """[F] float32."""
    shift: Any
    """[F] float32: b * scale - floor."""
    bound: Any
    """[F, 3] float32 of each latent: its reach |w| * scale, which a row's lost part is multiplied by; its loss
    lost_w * scale, which the row's size is multiplied by; its slack, which does not depend on the row."""
    group_bound: Any
    """[3, G] the largest of each group."""
    most: Any
    """[5] float64: the largest |w|, reach, loss, slack and |shift|."""
    accumulation: np.float32
    """D 2^-23."""
    flush: np.float32
    """What products lose at most where operands are taken for 0, for an other operand of norm 1."""
    tiny: np.float32
    """The same of products taken for 0."""
    rounding: np.float32
    """What v's rounding costs at most, relative to it."""


def latent_terms(screen: Screen, b_enc: Tensor, scale: Tensor | None, floor: Tensor | None) -> Terms:
    """The terms of latents with biases [F], ranked by pre-activation times `scale` [F] or to exceed `floor` [F]."""
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
    """What the row of this norm and loss multiplies reach and loss by, and what it adds: (a, c, z)."""
    if size == 0:
        return ZERO, ZERO, ZERO
    return (
        (lost + terms.flush + terms.accumulation * size) * _MARGIN,
        (size + lost) * _MARGIN,
        terms.tiny,
    )


@inlined
def can_screen(size: Any, a: Any, c: Any, terms: Any) -> Any:
    """Whether nothing about this row can be infinite or NaN."""
    most, norm = terms.most, np.float64(size)
    bound = a * most[1] + c * most[2] + most[3]
    return norm * most[0] + norm * most[1] + most[4] + bound < _OVERFLOW


@inlined
def lift(g: Any, a: Any, c: Any, z: Any, terms: Any) -> Any:
    """The bound of group g, but for what is relative to the score."""
    return a * terms.group_bound[0, g] + c * terms.group_bound[1, g] + terms.group_bound[2, g] + z


@kernel
def raise_maxima(products: Any, first: Any, begin: Any, size: Any, lost: Any, terms: Any, maxima: Any) -> None:
    """Fill a block of maxima [B, G]: the largest screened score of each group plus its lift, or 0 if that is negative.

    `products` [n, m] are of the rows from `first` on and the latents from `begin` on.
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
    """Of `count` latents; where that is a constant, as it mostly is, the loop is a few vector instructions.

    Positive floats are ordered as their bits are, and negative ones have negative bits.
    """
    end, largest = begin + count, np.int32(0)
    products, scale, shift = products[begin:end], scale[begin:end], shift[begin:end]
    for n in range(count):
        score = widen(products[n]) * scale[n] + (shift[n] + raised)
        largest = max(largest, bits_of(score))
    return from_bits(largest)


@inlined
def lowest(maximum: Any, raised: Any, terms: Any) -> Any:
    """What the best latent of a group has for certain, from the group's raised maximum; 0 if that is negative."""
    return max((maximum - raised) * (ONE - terms.rounding) - raised, ZERO)


@inlined
def highest(f: Any, score: Any, a: Any, c: Any, z: Any, terms: Any) -> Any:
    """The most that the exact score of latent f can be, from the screened one."""
    return score + terms.rounding * abs(score) + a * terms.bound[f, 0] + c * terms.bound[f, 1] + terms.bound[f, 2] + z


@inlined
def passing(products: Any, place: Any, f: Any, raised: Any, terms: Any, floor: Any) -> Any:
    """The latents of the group from f on whose exact score can be `floor` or more by the group's lift.

    Bits of a word; the group's products are at `place`.
    """
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
    """List and choose every place of a row, where no bound can leave one out; how many there are."""
    for f in range(latents):
        work.candidates[f] = f
        work.chosen[f] = f
    return latents
