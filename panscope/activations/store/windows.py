"""In which order the rows of a store are given: a pure function of seed, epoch and window.

A window is a part of a slice that fits into memory. An epoch visits every window of a slice once, in an order of its
own, and the rows of each window in an order of their own, so a reader's position is one number. Rows were shuffled one
by one before they were written; in reading, runs of a few rows stay together, since reading single rows in a random
order is less than half as fast as copying memory.

Shape letters: W rows of a window.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.activations.store.layout import Cut
from panscope.data.order import generator
from panscope.types import UserError

RUN = 16
"""Rows that stay together."""
_WRITTEN = re.compile(r"([1-9]\d*)/([1-9]\d*)")


@dataclass(frozen=True)
class Slice:
    """One of `count` slices of a store's rows; `index` counts from 1."""

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Slice":
        """From how it is written, such as 2/8; raises UserError on anything else."""
        found = _WRITTEN.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            raise UserError(f"slice {text!r} is not understood: write the second of eight slices as 2/8")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class Windows:
    """The windows of one slice: from row `first` to row `end` - 1 of the store.

    A window is a part of a shard or some whole shards, and windows of one shard follow each other, so that each file is
    needed at one time of an epoch only.
    """

    def __init__(self, rows: int, window_rows: int, cut: Cut, part: Slice | None = None) -> None:
        """Windows of at most `window_rows` rows, but of one block at least, of a store of `rows` rows.

        Slices are whole blocks, so that no checksum is shared; raises UserError if there are too few of them.
        """
        part, size = part or Slice(), cut.block_rows
        blocks = -(-rows // size)
        if blocks < part.count:
            raise UserError(f"slice {str(part)!r}: the store has {blocks} blocks of {size} rows; make fewer slices")
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
        """Of the slice."""
        return self.end - self.first

    def bounds(self, window: int) -> tuple[int, int]:
        """The first row of a window, and how many it has."""
        return self._edges[window], self._edges[window + 1] - self._edges[window]

    def order(self, seed: int, epoch: int) -> Tensor:
        """[windows] int64 the order in which an epoch visits them: shard by shard, both in random orders."""
        mixed = torch.from_numpy(generator(seed, epoch, 2).permutation(len(self)))
        shards, firsts = self._shards[mixed].unique(return_inverse=True)
        place = torch.from_numpy(generator(seed, epoch, 3).permutation(len(shards)))
        return mixed[place[firsts].sort(stable=True).indices]

    def permutation(self, seed: int, epoch: int, window: int) -> Tensor:
        """[W] int64 the order of the rows of a window in an epoch, from 0.

        Runs of RUN rows in a random order; where they begin is random too, so each epoch has other runs.
        """
        first, count = self.bounds(window)
        draw = generator(seed, epoch, 1, first)
        runs = torch.from_numpy(draw.permutation(-(-count // RUN)))
        rows = (runs[:, None] * RUN + torch.arange(RUN)).flatten()
        return (rows[rows < count] + int(draw.integers(count))) % count


def _rounded(window_rows: int, cut: Cut) -> int:
    """The rows of the largest window: whole shards, or as many blocks as the largest part of a shard has."""
    if window_rows >= cut.shard_rows:
        return window_rows // cut.shard_rows * cut.shard_rows
    blocks = cut.shard_rows // cut.block_rows
    parts = -(-blocks // max(1, window_rows // cut.block_rows))
    return -(-blocks // parts) * cut.block_rows


def _edges(rows: int, window_rows: int, cut: Cut) -> Iterator[int]:
    """The rows at which windows begin: each so many shards on, or shards cut into equal parts."""
    if window_rows >= cut.shard_rows:
        yield from range(0, rows, window_rows)
        return
    blocks = cut.shard_rows // cut.block_rows
    parts = -(-blocks * cut.block_rows // window_rows)
    for shard in range(cut.shards(rows)):
        for part in range(parts):
            yield shard * cut.shard_rows + part * blocks // parts * cut.block_rows
