"""The one dense product of a step, in chunks of rows and blocks of latents.

A block stays in the core's cache until the largest score of each of its groups is known; with these maxima, selection
reads few products again. A chunk is computed in the screen's precision; if the error bound leaves too many candidates
to rescore, as it does when rows share a large mean, the rest of the chunk is computed again in float32.

Shape letters: B rows, n rows of a chunk, D input width, F latents, G groups.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from panscope.kernels.backend import InputRows, Screen
from panscope.kernels.cpu.arithmetic import ONE, prefetch
from panscope.kernels.cpu.arrays import Buffers, array
from panscope.kernels.cpu.bound import GROUP, Terms, latent_terms, raise_maxima
from panscope.kernels.cpu.compiled import inlined
from panscope.kernels.cpu.threads import Threads

_MOST_ROWS, _LEAST_ROWS, _CHUNK_BYTES = 256, 32, 1 << 25
_BLOCK = 2048
"""Latents of a block; a multiple of GROUP."""
_MAX_WASTE = 1 / 32
"""Share of all latents that may be rescored without being selected: about a quarter of the cost of the float32
product."""
_UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ScreenQuery:
    """The input of a selection: rows and latents, and how the latents are ranked."""

    rows: InputRows
    W_enc: Tensor
    b_enc: Tensor
    screen: Screen
    scale: Tensor | None = None
    """[F] factors of the pre-activations; None for 1."""
    floor: Tensor | None = None
    """[F] thresholds of the pre-activations; None for 0."""

    @cached_property
    def terms(self) -> Terms:
        """The latents' terms of scores and bounds."""
        return latent_terms(self.screen, self.b_enc, self.scale, self.floor)

    @cached_property
    def in_float32(self) -> "ScreenQuery":
        """A copy with a screen in float32."""
        rows = replace(self.rows, low=self.rows.x, lost=torch.zeros_like(self.rows.lost))
        return replace(self, rows=rows, screen=Screen(self.W_enc, self.screen.size, torch.zeros_like(self.screen.lost)))


class Screened(NamedTuple):
    """The products of rows with all latents, and the largest score of each group."""

    first: int
    """Index of the first row."""
    products: Any
    """[n F] bfloat16 bits or float32, by block, and by row within a block: see `place`."""
    maxima: Any
    """[n, G] float32, from `raise_maxima`."""


@inlined
def place(screened: Any, b: Any, f: Any, latents: Any) -> Any:
    """The index in `products` of row b and latent f, given the number of latents."""
    begin = f // _BLOCK * _BLOCK
    width = min(_BLOCK, latents - begin)
    return begin * len(screened.maxima) + (b - screened.first) * width + f - begin


@inlined
def promising(screened: Any, b: Any, floor: Any, terms: Any, groups: Any) -> Any:
    """List the groups that may have a score of at least `floor` in row b, and prefetch their products; returns their
    number."""
    maxima, latents, count = screened.maxima[b - screened.first], len(terms.scale), 0
    for g in range(len(maxima)):
        if maxima[g] * (ONE + terms.rounding) >= floor:
            groups[count] = g
            count += 1
            prefetch(screened.products, place(screened, b, g * GROUP, latents))
    return count


Visit = Callable[[ScreenQuery, Screened, int], int]
"""(query, screened, number of latents that may be rescored without being selected) -> the first row not done."""


def chunk_rows(rows: int, query: ScreenQuery, threads: int) -> int:
    """Rows of a chunk: few enough to fit the cache and to occupy all threads, enough for an efficient product."""
    width = max(1, len(query.W_enc) * query.screen.low.element_size())
    most = min(_MOST_ROWS, max(_LEAST_ROWS, _CHUNK_BYTES // width))
    rounds = -(-rows // (most * threads))
    return max(_LEAST_ROWS, -(-rows // max(1, rounds * threads)))


def over_chunks(threads: Threads, buffers: Buffers, query: ScreenQuery, visit: Visit) -> None:
    """Call `visit` with the screened products of every chunk, and again in float32 for the rows that it leaves."""
    count, step = len(query.rows.x), chunk_rows(len(query.rows.x), query, threads.count)

    def task(number: int) -> None:
        row, end = number * step, min(count, (number + 1) * step)
        row = visit(query, screen(query, row, end, buffers), _max_waste(query, end - row))
        while row < end:
            part = min(end, row + max(1, step // 2))
            row = visit(query.in_float32, screen(query.in_float32, row, part, buffers), _UNLIMITED)

    threads.run(task, -(-count // step))


def screen(query: ScreenQuery, first: int, end: int, buffers: Buffers) -> Screened:
    """The screened rows from `first` to `end` - 1, in this thread's buffers."""
    low, rows, count = query.screen.low.detach(), query.rows, end - first
    size, lost = array(rows.size), array(rows.lost)
    products = buffers.tensor("products", (count * len(low),), low.dtype)
    maxima = buffers.array("maxima", (count, -(-len(low) // GROUP)), torch.float32)
    for begin in range(0, len(low), _BLOCK):
        latents = low[begin : begin + _BLOCK]
        block = products[begin * count :][: len(latents) * count].view(count, len(latents))
        torch.mm(rows.low[first:end], latents.T, out=block)
        raise_maxima(array(block), first, begin, size, lost, query.terms, maxima)
    return Screened(first, array(products), maxima)


def _max_waste(query: ScreenQuery, rows: int) -> int:
    return _UNLIMITED if query.screen.low.dtype == torch.float32 else int(rows * len(query.W_enc) * _MAX_WASTE)
