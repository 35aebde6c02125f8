"""The order in which the rows of a store are read: a pure function of seed, epoch and window.

A window is a part of a slice that fits into memory. An epoch visits every window of a slice once, and each row of a
window once; both orders are different in every epoch, so a reader's position is one number. Rows were shuffled
individually before they were written; reading keeps runs of a few rows together, as reading single rows in random order
is less than half as fast as copying memory.

Shape letters: W rows of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.activations.store.layout import Cut
from panscope.data.order import generator
from panscope.types import UserError, read_fraction

RUN = 16
"""Number of consecutive rows that are kept together."""


@dataclass(frozen=True)
class Slice:
    """One of `count` slices of a store's rows; `index` counts from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """Parse a slice written as 2/8; raises UserError on anything else."""
        return cls(*read_fraction(text, "slice"))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class Windows:
    """The windows of one slice, which has the rows `first` to `end` - 1 of the store.

    A window is a part of a shard or a number of whole shards. The windows of a shard are visited one after another, so
    that each file is needed at one time of an epoch only.
    """

    def __init__(self, rows: int, window_rows: int, cut: Cut, part: Slice | None = None) -> None:
        """Windows of at most `window_rows` rows, but at least one block, for a store of `rows` rows.

        Slices consist of whole blocks, so that none shares a checksum with another. Raises UserError if there are fewer
        blocks than slices.
        """
        part, size = part or Slice(), cut.block_rows
        blocks = -(-rows // size)
        if blocks < part.count:
            raise UserError(f"slice {str(part)!r}: the store has {blocks} blocks of {size} rows; use fewer slices")
        self.first = (part.index - 1) * blocks // part.count * size
        self.end = min(rows, part.index * blocks // part.count * size)
        self.window_rows = _rounded(window_rows, cut)
        inner = [edge for edge in _edges(rows, self.window_rows, cut) if self.first < edge < self.end]
        self._edges = [self.first, *inner, self.end]
        self._shards = torch.tensor([edge // cut.shard_rows for edge in self._edges[:-1]])

    def __len__(self) -> int:
        return len(self._edges) - 1

    @property
    def rows(self) -> int:
        """Number of rows of the slice."""
        return self.end - self.first

    def bounds(self, window: int) -> tuple[int, int]:
        """The first row of a window, and its number of rows."""
        return self._edges[window], self._edges[window + 1] - self._edges[window]

    def order(self, seed: int, epoch: int) -> Tensor:
        """[windows] int64: the order in which an epoch visits the windows; shards and their windows are shuffled."""
        mixed = torch.from_numpy(generator(seed, epoch, 2).permutation(len(self)))
        shards, firsts = self._shards[mixed].unique(return_inverse=True)
        rank = torch.from_numpy(generator(seed, epoch, 3).permutation(len(shards)))
        return mixed[rank[firsts].sort(stable=True).indices]

    def permutation(self, seed: int, epoch: int, window: int) -> Tensor:
        """[W] int64: the order of the rows of a window in an epoch, as row numbers from 0.

        Runs of RUN rows are shuffled. The offset of the first run is random, so that the runs differ between epochs.
        """
        first, count = self.bounds(window)
        draw = generator(seed, epoch, 1, first)
        runs = torch.from_numpy(draw.permutation(-(-count // RUN)))
        rows = (runs[:, None] * RUN + torch.arange(RUN)).flatten()
        return (rows[rows < count] + int(draw.integers(count))) % count


def _rounded(window_rows: int, cut: Cut) -> int:
    """The number of rows of the largest window: whole shards, or the largest of equal parts of a shard."""
    if window_rows >= cut.shard_rows:
        return window_rows // cut.shard_rows * cut.shard_rows
    blocks = cut.shard_rows // cut.block_rows
    parts = -(-blocks // max(1, window_rows // cut.block_rows))
    return -(-blocks // parts) * cut.block_rows


def _edges(rows: int, window_rows: int, cut: Cut) -> Iterator[int]:
    """The first rows of all windows: every so many shards, or at equal parts of each shard."""
    if window_rows >= cut.shard_rows:
        yield from range(0, rows, window_rows)
        return
    blocks = cut.shard_rows // cut.block_rows
    parts = -(-blocks * cut.block_rows // window_rows)
    for shard in range(cut.shards(rows)):
        for part in range(parts):
            yield shard * cut.shard_rows + part * blocks // parts * cut.block_rows
