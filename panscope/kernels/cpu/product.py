"""The one dense product of a step, a chunk of rows at a time, and in it a block of latents at a time.

A block stays in the core's cache until the largest score of each of its groups is taken; with these, selection looks
at few products again. A chunk is taken in bfloat16 where the screen is; if its bound leaves too many places to rescore,
as it does where rows share a large mean, what is left of the chunk is taken once more in float32.

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
_WASTE = 1 / 32
"""Share of all latents that may be rescored in vain: some quarter of what the product in float32 costs."""
_UNLIMITED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ScreenQuery:
    """Rows and latents, and how the latents are ranked: everything a selection reads."""

    rows: InputRows
    W_enc: Tensor
    b_enc: Tensor
    screen: Screen
    scale: Tensor | None = None
    """[F] what pre-activations are multiplied by; None for 1."""
    floor: Tensor | None = None
    """[F] what they are compared with; None for 0."""

    @cached_property
    def terms(self) -> Terms:
        """What the latents bring to scores and bounds."""
        return latent_terms(self.screen, self.b_enc, self.scale, self.floor)

    @cached_property
    def in_full(self) -> "ScreenQuery":
        """The same with a screen in float32."""
        rows = replace(self.rows, low=self.rows.x, lost=torch.zeros_like(self.rows.lost))
        return replace(self, rows=rows, screen=Screen(self.W_enc, self.screen.size, torch.zeros_like(self.screen.lost)))


class Screened(NamedTuple):
    """The products of rows with all latents, and the largest score of each group."""

    first: int
    """The first row."""
    products: Any
    """[n F] bfloat16 bits or float32, block after block, row after row in a block: see `place`."""
    maxima: Any
    """[n, G] float32, from `raise_maxima`."""


@inlined
def place(screened: Any, b: Any, f: Any, latents: Any) -> Any:
    """Where the product of row b and latent f is, of that many latents."""
    begin = f // _BLOCK * _BLOCK
    width = min(_BLOCK, latents - begin)
    return begin * len(screened.maxima) + (b - screened.first) * width + f - begin


@inlined
def promising(screened: Any, b: Any, floor: Any, terms: Any, groups: Any) -> Any:
    """List the groups of which a score of row b may be `floor` or more; how many. Their products are fetched ahead."""
    maxima, latents, count = screened.maxima[b - screened.first], len(terms.scale), 0
    for g in range(len(maxima)):
        if maxima[g] * (ONE + terms.rounding) >= floor:
            groups[count] = g
            count += 1
            prefetch(screened.products, place(screened, b, g * GROUP, latents))
    return count


Visit = Callable[[ScreenQuery, Screened, int], int]
"""(question, screened, how many may be rescored in vain) -> the first row not done."""


def chunk_rows(rows: int, question: ScreenQuery, threads: int) -> int:
    """How many rows a chunk has: few enough for the cache and to keep all threads busy, enough for the product."""
    width = max(1, len(question.W_enc) * question.screen.low.element_size())
    most = min(_MOST_ROWS, max(_LEAST_ROWS, _CHUNK_BYTES // width))
    rounds = -(-rows // (most * threads))
    return max(_LEAST_ROWS, -(-rows // max(1, rounds * threads)))


def over_chunks(threads: Threads, buffers: Buffers, question: ScreenQuery, visit: Visit) -> None:
    """Show every row's screened products to `visit`; what it leaves of a chunk it is shown again in float32."""
    count, step = len(question.rows.x), chunk_rows(len(question.rows.x), question, threads.count)

    def task(number: int) -> None:
        row, end = number * step, min(count, (number + 1) * step)
        row = visit(question, screen(question, row, end, buffers), _may_waste(question, end - row))
        while row < end:
            part = min(end, row + max(1, step // 2))
            row = visit(question.in_full, screen(question.in_full, row, part, buffers), _UNLIMITED)

    threads.run(task, -(-count // step))


def screen(question: ScreenQuery, first: int, end: int, buffers: Buffers) -> Screened:
    """The screened rows from `first` to `end` - 1, in this thread's buffers."""
    low, rows, count = question.screen.low.detach(), question.rows, end - first
    size, lost = array(rows.size), array(rows.lost)
    products = buffers.tensor("products", (count * len(low),), low.dtype)
    maxima = buffers.array("maxima", (count, -(-len(low) // GROUP)), torch.float32)
    for begin in range(0, len(low), _BLOCK):
        latents = low[begin : begin + _BLOCK]
        block = products[begin * count :][: len(latents) * count].view(count, len(latents))
        torch.mm(rows.low[first:end], latents.T, out=block)
        raise_maxima(array(block), first, begin, size, lost, question.terms, maxima)
    return Screened(first, array(products), maxima)


def _may_waste(question: ScreenQuery, rows: int) -> int:
    return _UNLIMITED if question.screen.low.dtype == torch.float32 else int(rows * len(question.W_enc) * _WASTE)
