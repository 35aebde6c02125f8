"""Every pre-activation above its latent's floor: screened, bounded, rescored exactly.

Candidates are the latents whose upper bound exceeds the floor; the exact pre-activation decides.

Shape letters: B rows, D input width, F latents, G groups, N entries.
"""

from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from panscope.kernels.backend import Entries
from panscope.kernels.cpu.arithmetic import LEAST, dots, lowest_bit, widen
from panscope.kernels.cpu.arrays import Buffers, array
from panscope.kernels.cpu.bound import GROUP, can_screen, everything, highest, lift, passing, row_bound
from panscope.kernels.cpu.compiled import inlined, kernel
from panscope.kernels.cpu.product import Screened, ScreenQuery, over_chunks, place, promising
from panscope.kernels.cpu.threads import Threads

_BUFFERED_ENTRIES = 1 << 16
"""Entries that a thread collects before it copies them to the result."""


class ThresholdWork(NamedTuple):
    """Buffers for one row, and for the entries of several rows."""

    groups: Any
    """[F] int64."""
    candidates: Any
    """[F] int64 latents, ascending."""
    chosen: Any
    """[F + 3] int64 indices of candidates."""
    pre: Any
    """[F] float32 of each candidate."""
    latents: Any
    """[at least F] int64 of the entries found."""
    values: Any
    """[at least F] float32 of the entries found."""


def work(buffers: Buffers, latents: int) -> ThresholdWork:
    """This thread's buffers."""
    found, one, whole = max(latents, _BUFFERED_ENTRIES), torch.float32, torch.int64
    shapes = {
        "groups": (latents, whole),
        "candidates": (latents, whole),
        "chosen": (latents + 3, whole),
        "pre": (latents, one),
    }
    shapes |= {"latents": (found, whole), "values": (found, one)}
    return ThresholdWork(**{name: buffers.array(name, (size,), dtype) for name, (size, dtype) in shapes.items()})


class _CapacityError(Exception):
    """There are more entries than the capacity."""


class _EntryCollector:
    """Collects the threads' entries by the first row of each piece, at most `capacity` entries in total."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._lock, self._count = capacity, Lock(), 0
        self._pieces: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, row: int, latents: np.ndarray, values: np.ndarray) -> None:
        with self._lock:
            self._count += len(latents)
            if self._count > self._capacity:
                raise _CapacityError
            self._pieces[row] = torch.from_numpy(latents.copy()), torch.from_numpy(values.copy())

    def entries(self, counts: Tensor) -> Entries:
        """All entries in row order, given the number of entries of each row, `counts` [B]."""
        starts = torch.zeros(len(counts) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=starts[1:])
        latents, values = torch.empty(self._count, dtype=torch.int64), torch.empty(self._count)
        for row, (some_latents, some_values) in self._pieces.items():
            part = slice(int(starts[row]), int(starts[row]) + len(some_latents))
            latents[part], values[part] = some_latents, some_values
        return Entries(values, latents, starts)


def above(threads: Threads, buffers: Buffers, query: ScreenQuery, capacity: int) -> Entries | None:
    """`Kernels.above`, with the query's floor."""
    assert query.floor is not None
    x, W_enc, b_enc, size = (array(each) for each in (query.rows.x, query.W_enc, query.b_enc, query.rows.size))
    floor, counts, collector = array(query.floor), torch.zeros(len(x), dtype=torch.int64), _EntryCollector(capacity)
    in_row = array(counts)

    def visit(query: ScreenQuery, screened: Screened, may_waste: int) -> int:
        lost, memory = array(query.rows.lost), work(buffers, len(W_enc))
        row, end = screened.first, screened.first + len(screened.maxima)
        while row < end:
            done, found, may_waste = _rows(
                screened, row, x, size, lost, W_enc, b_enc, floor, query.terms, may_waste, memory, in_row
            )
            collector.add(row, memory.latents[:found], memory.values[:found])
            if may_waste < 0:
                return done
            row = done
        return end

    try:
        over_chunks(threads, buffers, query, visit)
    except _CapacityError:
        return None
    return collector.entries(counts)


@kernel
def _rows(  # noqa: PLR0913
    screened: Any,
    first: Any,
    x: Any,
    size: Any,
    lost: Any,
    W_enc: Any,
    b_enc: Any,
    floor: Any,
    terms: Any,
    may_waste: Any,
    work: Any,
    counts: Any,
) -> Any:
    """Collect the entries of rows from `first` on: (first row not done, entries collected, waste still allowed).

    Stops if the buffers may be too small for the next row's entries, or if the allowed waste falls below 0.
    """
    found, end = 0, screened.first + len(screened.maxima)
    for b in range(first, end):
        if np.isnan(size[b]):
            continue
        a, c, z = row_bound(size[b], lost[b], terms)
        screens = can_screen(size[b], a, c, terms)
        asked = _candidates(screened, b, a, c, z, terms, work) if screens else everything(len(W_enc), work)
        if found + asked > len(work.latents):
            return b, found, may_waste
        counts[b] = _keep(x[b], W_enc, b_enc, floor, asked, found, work)
        found += counts[b]
        may_waste -= asked - counts[b] if screens else 0
        if may_waste < 0:
            return b + 1, found, may_waste
    return end, found, may_waste


@inlined
def _candidates(screened: Any, b: Any, a: Any, c: Any, z: Any, terms: Any, work: Any) -> Any:
    """List the latents that may exceed their floor in row b; returns their number."""
    count = 0
    for i in range(promising(screened, b, LEAST, terms, work.groups)):
        g = work.groups[i]
        first = place(screened, b, g * GROUP, len(terms.scale))
        word = passing(screened.products, first, g * GROUP, lift(g, a, c, z, terms), terms, LEAST)
        while word != 0:
            n = lowest_bit(word)
            word = np.int32(word & (word - 1))
            f = g * GROUP + n
            score = widen(screened.products[first + n]) * terms.scale[f] + terms.shift[f]
            if highest(f, score, a, c, z, terms) > 0:
                work.candidates[count], work.chosen[count] = f, count
                count += 1
    return count


@inlined
def _keep(x: Any, W_enc: Any, b_enc: Any, floor: Any, asked: Any, found: Any, work: Any) -> Any:
    """Append the candidates whose exact pre-activation exceeds the floor; returns their number."""
    if asked == 0:
        return 0
    dots(x, W_enc, work.candidates, work.chosen, asked, work.pre)
    kept = found
    for j in range(asked):
        f = work.candidates[j]
        pre = work.pre[j] + b_enc[f]
        if pre > floor[f]:
            work.latents[kept], work.values[kept] = f, pre
            kept += 1
    return kept - found
