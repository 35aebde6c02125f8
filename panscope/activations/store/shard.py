"""One shard: written as a stream, with a checksum for every block of rows, and read through a memory map.

Checksums are xxh3 (64 bit). A block is checked at its first reading in a process, or ahead of it; from then on it is
taken to be what it was.

Shape letters: N rows of a shard, n of some of them, D width of the column.
"""

import mmap
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from pydantic import Field
from torch import Tensor

from panscope.activations.store.layout import PAGE, StoredColumn
from panscope.config import Config
from panscope.storage.atomic import replacing
from panscope.types import UserError

_PIECE_NUMBERS, _PIECE_ROWS = 1 << 18, 512
"""What is summed at a time in float32, before it is added in float64."""
_LARGE_BYTES = 4 << 20
"""A block that is worth a second thread."""
_FLUSH_BYTES = 16 << 20
"""Written before the system is asked to bring it to disk."""
_MAP_NORESERVE = 0x4000
"""Linux's; Python has the name from 3.13 on."""


class ShardRecord(Config):
    """What is kept about a shard beside it."""

    of: str
    """Which shard of which store: so that records of two stores, or of two shards, are not taken for each other."""
    rows: int = Field(ge=1)
    xxh3: str
    """Of the data."""
    blocks: tuple[str, ...]
    """Of each block of rows."""
    sum_norm: float = 0.0
    """The sum of ||x|| over the rows, as the next two 0 for tokens."""
    sum_squared_norm: float = 0.0
    """The sum of ||x||^2."""
    total: tuple[float, ...] = ()
    """The sum of x, [D]."""
    state: dict[str, Any] | None = None
    """Of tokens: where the source stood after the last row."""


class ShardWriter:
    """Takes blocks of rows one after another; only the last block of a shard may be shorter than the others."""

    def __init__(self, file: BinaryIO, column: StoredColumn, aside: Executor) -> None:
        """Checksums and norms of a large block are made by `aside` while the system takes its bytes."""
        self._file, self._column, self._aside = file, column, aside
        self._rows, self._flushing = 0, 0
        self._blocks: list[str] = []
        self._all = xxhash.xxh3_64()
        self._norms = np.zeros(2)
        self._total = np.zeros(column.width)
        file.write(b"\0" * PAGE)

    def write(self, rows: Tensor) -> None:
        """Add a block, [n, D] in any floating type (or int64, for tokens), on any device."""
        stored = rows.to(self._column.dtype).cpu().contiguous()
        data = bytes_of(stored)
        large = len(data) >= _LARGE_BYTES
        accounted = self._aside.submit(self._account, stored, data) if large else self._account(stored, data)
        written = 0
        while written < len(data):  # An unbuffered file may take less than it is given.
            written += self._file.write(data[written:])
        if accounted is not None:
            accounted.result()
        self._rows += len(rows)
        self._begin_flush()

    def _begin_flush(self) -> None:
        """Have the system bring to disk what it was given, where it can be asked to: the flush at the end is short."""
        end = PAGE + self._rows * self._column.row_bytes
        if end - self._flushing >= _FLUSH_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._flushing, end - self._flushing, os.POSIX_FADV_DONTNEED)
            self._flushing = end

    def _account(self, stored: Tensor, data: memoryview) -> None:
        self._all.update(data)
        self._blocks.append(xxhash.xxh3_64_hexdigest(data))
        for x in _float_pieces(stored) if stored.is_floating_point() else ():
            squared = np.einsum("nd,nd->n", x, x).astype(np.float64)
            self._norms += np.sqrt(squared).sum(), squared.sum()
            self._total += x.sum(axis=0)

    def finish(self, of: str, state: dict[str, Any] | None = None) -> ShardRecord:
        """Write the header; nothing may be added afterwards."""
        self._file.seek(0)
        self._file.write(self._column.header(self._rows))
        with_norms = self._column.dtype.is_floating_point
        return ShardRecord(
            of=of,
            rows=self._rows,
            xxh3=self._all.hexdigest(),
            blocks=tuple(self._blocks),
            sum_norm=float(self._norms[0]),
            sum_squared_norm=float(self._norms[1]),
            total=tuple(self._total.tolist()) if with_norms else (),
            state=state,
        )


@contextmanager
def writing_shard(path: Path, column: StoredColumn) -> Iterator[ShardWriter]:
    """A writer of the shard at `path`, which is there only once everything was written and `finish` was called."""
    with (
        ThreadPoolExecutor(1, "panscope-shard") as aside,
        replacing(path) as temporary,
        temporary.open("wb", buffering=0) as file,
    ):
        yield ShardWriter(file, column, aside)  # type: ignore[arg-type]


def _float_pieces(stored: Tensor) -> Iterator[np.ndarray]:
    """Rows as float32, a few at a time, which stay in a core's cache; by numpy, whose sums never wait for a thread."""
    for piece in stored.split(max(1, min(_PIECE_ROWS, _PIECE_NUMBERS // stored.shape[1]))):
        if piece.dtype == torch.bfloat16:
            bits = piece.view(torch.uint16).numpy()
            yield np.left_shift(bits, 16, dtype=np.uint32, casting="unsafe").view(np.float32)
        else:
            yield piece.numpy()


def bytes_of(rows: Tensor) -> memoryview:
    """The bytes of rows on the CPU, not copied where they lie in one piece."""
    return memoryview(rows.contiguous().view(torch.uint8).numpy().reshape(-1))  # type: ignore[arg-type]


def check_size(path: Path, column: StoredColumn, rows: int, found: int) -> None:
    """Raise UserError if a shard of `found` bytes is not one of that many rows."""
    size = PAGE + rows * column.row_bytes
    if found != size:
        raise UserError(
            f"the file {str(path)!r} is damaged: it has {found} bytes, and {rows} rows of {column.row_bytes} bytes "
            f"make {size}; take an undamaged copy"
        )


def check_header(path: Path, column: StoredColumn, rows: int, found: bytes) -> None:
    """Raise UserError if the header `found` is not the one of that many rows."""
    if found != column.header(rows):
        raise UserError(
            f"the file {str(path)!r} is damaged: its header does not match its data; take an undamaged copy"
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the file {str(path)!r} cannot be read: {error.strerror or error}; make it readable, or take an "
            "undamaged copy"
        ) from error


@dataclass(frozen=True)
class _Mapped:
    map: mmap.mmap
    rows: Tensor
    """[N, D]."""


class Shard:
    """A shard on disk, mapped at its first use."""

    def __init__(self, path: Path, column: StoredColumn, record: ShardRecord, block_rows: int) -> None:
        self._path, self._column, self._record, self._block_rows = path, column, record, block_rows
        self._checked = [False] * len(record.blocks)
        self._mapped = _map(path, column, record.rows)

    @property
    def rows(self) -> Tensor:
        """[N, D] a view of the map, to be read only and after `check`."""
        return self._mapped.rows

    def check(self, first: int, count: int) -> None:
        """Compare the blocks in which the rows from `first` on lie with their checksums, unless that was done.

        Raises UserError naming the file and the rows that are damaged.
        """
        for block in range(first // self._block_rows, -(-(first + count) // self._block_rows)):
            if self._checked[block]:
                continue
            begin = block * self._block_rows
            rows = self._mapped.rows[begin : begin + self._block_rows]
            if xxhash.xxh3_64_hexdigest(bytes_of(rows)) != self._record.blocks[block]:
                raise UserError(
                    f"the file {str(self._path)!r} is damaged: rows {begin} to {begin + len(rows) - 1} do not match "
                    f"their checksum in {self._path.stem}.json beside it; take undamaged copies of both, or delete "
                    "them and give the panscope collect command again"
                )
            self._checked[block] = True

    def fetch_ahead(self, first: int, count: int) -> None:
        """Ask the system to have these rows in memory soon."""
        row = self._column.row_bytes
        begin = (PAGE + first * row) // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapped.map.madvise(mmap.MADV_WILLNEED, begin, PAGE + (first + count) * row - begin)


def _map(path: Path, column: StoredColumn, rows: int) -> _Mapped:
    """The rows of a shard; raises UserError if its size or header are not those of that many rows."""
    size = PAGE + rows * column.row_bytes
    with reading(path), path.open("rb") as file:
        check_size(path, column, rows, os.fstat(file.fileno()).st_size)
        # Private and writable only so that torch takes it without a warning; nothing writes to it. Without a reserve
        # the system would refuse a shard larger than the memory, of which it thinks that all might be written to.
        private = mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0)
        mapped = mmap.mmap(file.fileno(), size, flags=private, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    check_header(path, column, rows, mapped[:PAGE])
    flat = torch.frombuffer(mapped, dtype=column.dtype, count=rows * column.width, offset=PAGE)
    return _Mapped(mapped, flat.view(rows, column.width))
