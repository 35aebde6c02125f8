"""The gradient of one row of a matrix, computed when it is needed and kept in registers.

    g_f = sum over entries n of f: coefficient_n * source[place_n]   + radial_f W_f   + extra[extra_index_f]

Some latents are active on most rows of a batch. To distribute their sums over programs, the entries (in the order of
latents) are divided into equal stretches, and the sum of every stretch within one latent is computed first; the program
of a latent then adds these sums and the entries before and after them. The order of all sums is fixed.

Shape letters: F latents, D width of the matrix, N entries, M rows of the source, S entries of a stretch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from panscope.kernels.backend import Contribution, Gradient
from panscope.kernels.triton import launch

_MIN_STRETCH = 128
"""Least number of entries of a stretch."""
_MAX_STRETCHES = 4096
"""Maximal number of stretches of a batch; their sums take this times D numbers."""
_TOGETHER = 8
_COLUMNS = 512


class Parts(NamedTuple):
    """A gradient as arguments of kernels, in this order."""

    starts: Tensor | None
    """[F + 1]."""
    coefficients: Tensor | None
    """[N] in the order of latents."""
    places: Tensor | None
    """[N] likewise."""
    source: Tensor | None
    """[M, D]."""
    sums: Tensor | None
    """[N // S, D], valid for stretches within one latent only."""
    shift: int
    """log2 S."""
    radial: Tensor | None
    """[F]."""
    extra_index: Tensor | None
    """[F]."""
    extra: Tensor | None
    """[n, D]."""


def parts(W: Tensor, gradient: Gradient) -> Parts:
    """The kernel arguments of a gradient of W [F, D]."""
    entries = gradient.contribution
    others = (gradient.radial, gradient.extra_index, gradient.extra if gradient.extra_index is not None else None)
    if entries is None or not len(entries.coefficients):
        return Parts(None, None, None, None, None, 0, *others)
    launch.checked("source", entries.source, len(entries.source), W.shape[1])
    coefficients = entries.coefficients.index_select(0, entries.grouped.order)
    places = entries.places.index_select(0, entries.grouped.order)
    stretch = max(_MIN_STRETCH, triton.next_power_of_2(triton.cdiv(len(places), _MAX_STRETCHES)))
    sums = _sums(entries, coefficients, places, stretch)
    shift = stretch.bit_length() - 1
    return Parts(entries.grouped.starts, coefficients, places, entries.source, sums, shift, *others)


def _sums(entries: Contribution, coefficients: Tensor, places: Tensor, stretch: int) -> Tensor:
    """[N // S, D] the sum of each stretch within one latent."""
    count, width = len(places) // stretch, entries.source.shape[1]
    sums = torch.empty(count, width, dtype=torch.float32, device=places.device)
    if count:
        firsts = torch.arange(0, count * stretch, stretch, device=places.device)
        owners = torch.searchsorted(entries.grouped.starts, firsts, right=True) - 1
        columns = min(_COLUMNS, launch.padded(width))
        across = triton.cdiv(width, columns)
        _sum_stretch[(count * across,)](
            entries.grouped.starts, owners, coefficients, places, entries.source, sums, stretch, width, across,
            TOGETHER=_TOGETHER, COLUMNS=columns, num_warps=4,
        )  # fmt: skip
    return sums


@triton.jit
def _sum_stretch(  # noqa: PLR0913
    starts, owners, coefficients, places, source, sums, S, D, across,
    TOGETHER: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    stretch = (program // across).to(tl.int64)
    begin, end = stretch * S, (stretch + 1) * S
    if tl.load(starts + tl.load(owners + stretch) + 1) < end:
        return
    column = (program % across) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([TOGETHER, COLUMNS], tl.float32)
    for first in range(begin, end, TOGETHER):
        n = first + tl.arange(0, TOGETHER)
        coefficient = tl.load(coefficients + n, mask=n < end, other=0.0)
        place = tl.load(places + n, mask=n < end, other=0)
        total += coefficient[:, None] * tl.load(
            source + place[:, None] * D + column[None, :], mask=(n < end)[:, None] & (column < D)[None, :], other=0.0
        )
    tl.store(sums + stretch * D + column, tl.sum(total, axis=0), mask=column < D)


@triton.jit
def entries_row(f, column, D, starts, coefficients, places, source, sums, shift, BLOCK: tl.constexpr):  # noqa: PLR0913
    """[BLOCK] the entries' part of the gradient of row f in these columns; 0 beyond the end."""
    g = tl.zeros([BLOCK], tl.float32)
    if starts is not None:
        begin, end = tl.load(starts + f), tl.load(starts + f + 1)
        first, last = (begin + (1 << shift) - 1) >> shift, end >> shift
        whole = first < last
        g = _add(g, coefficients, places, source, begin, tl.where(whole, first << shift, end), column, D)
        for stretch in range(first, last):
            g += tl.load(sums + stretch * D + column, mask=column < D, other=0.0)
        g = _add(g, coefficients, places, source, tl.where(whole, last << shift, end), end, column, D)
    return g


@triton.jit
def others_row(g, w, f, column, D, radial, extra_index, extra):  # noqa: PLR0913
    """g plus the other parts of the gradient; w are these columns of row f."""
    if radial is not None:
        g += tl.load(radial + f) * w
    if extra_index is not None:
        n = tl.load(extra_index + f)
        g += tl.load(extra + n * D + column, mask=(column < D) & (n >= 0), other=0.0)
    return g


@triton.jit
def _add(g, coefficients, places, source, begin, end, column, D):  # noqa: PLR0913
    """g plus the entries begin to end - 1, four at a time, so that their rows are loaded concurrently."""
    for n in range(begin, end, 4):
        one, first = _entry(coefficients, places, source, n, end, column, D)
        two, second = _entry(coefficients, places, source, n + 1, end, column, D)
        three, third = _entry(coefficients, places, source, n + 2, end, column, D)
        four, fourth = _entry(coefficients, places, source, n + 3, end, column, D)
        g += one * first
        g += two * second
        g += three * third
        g += four * fourth
    return g


@triton.jit
def _entry(coefficients, places, source, n, end, column, D):
    """An entry's coefficient and its row of the source; 0 from `end` on."""
    coefficient = tl.load(coefficients + n, mask=n < end, other=0.0)
    place = tl.load(places + n, mask=n < end, other=0)
    return coefficient, tl.load(source + place * D + column, mask=(column < D) & (n < end), other=0.0)
