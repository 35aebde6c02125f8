"""A shard: written as a stream with one checksum per block of rows, and read through a memory map.

Checksums are xxh3 (64 bits). A process verifies each block at most once, before or at its first use.

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

_PIECE_VALUES, _PIECE_ROWS = 1 << 18, 512
"""Limits of what is summed in float32 before it is added to the sums in float64."""
_LARGE_BLOCK_BYTES = 4 << 20
"""Minimum size of a block that is worth a second thread."""
_WRITEBACK_BYTES = 16 << 20
"""Number of bytes written between two requests to write back."""
_MAP_NORESERVE = 0x4000
"""The flag's value on Linux; `mmap` has it from Python 3.13 on."""


class ShardRecord(Config):
    """Metadata of a shard, stored in a file beside it."""

    of: str
    """Identifies the shard and its store, so that the records of different shards or stores cannot be confused."""
    rows: int = Field(ge=1)
    xxh3: str
    """Checksum of the data."""
    blocks: tuple[str, ...]
    """Checksum of each block of rows."""
    sum_norm: float = 0.0
    """The sum of ||x|| over the rows; 0 for tokens."""
    sum_squared_norm: float = 0.0
    """The sum of ||x||^2; 0 for tokens."""
    total: tuple[float, ...] = ()
    """The sum of x, [D]; empty for tokens."""
    state: dict[str, Any] | None = None
    """For tokens, the state of the source after the last row."""


class ShardWriter:
    """Writes a shard block by block; only the last block may be shorter than the others."""

    def __init__(self, file: BinaryIO, column: StoredColumn, executor: Executor) -> None:
        """`executor` computes checksums and norms of large blocks while they are being written."""
        self._file, self._column, self._executor = file, column, executor
        self._rows, self._writeback_end = 0, 0
        self._block_checksums: list[str] = []
        self._checksum = xxhash.xxh3_64()
        self._norms = np.zeros(2)
        self._sum = np.zeros(column.width)
        file.write(b"\0" * PAGE)

    def write(self, rows: Tensor) -> None:
        """Add a block, [n, D] in any floating type (or int64, for tokens), on any device."""
        stored = rows.to(self._column.dtype).cpu().contiguous()
        data = bytes_of(stored)
        large = len(data) >= _LARGE_BLOCK_BYTES
        pending = self._executor.submit(self._update_sums, stored, data) if large else self._update_sums(stored, data)
        written = 0
        while written < len(data):  # An unbuffered file may write less than requested.
            written += self._file.write(data[written:])
        if pending is not None:
            pending.result()
        self._rows += len(rows)
        self._start_writeback()

    def _start_writeback(self) -> None:
        """Ask the system to write back the data so far, where supported, so that the final flush is short."""
        end = PAGE + self._rows * self._column.row_bytes
        if end - self._writeback_end >= _WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._file.fileno(), self._writeback_end, end - self._writeback_end, os.POSIX_FADV_DONTNEED
            )
            self._writeback_end = end

    def _update_sums(self, stored: Tensor, data: memoryview) -> None:
        self._checksum.update(data)
        self._block_checksums.append(xxhash.xxh3_64_hexdigest(data))
        for x in _float_pieces(stored) if stored.is_floating_point() else ():
            squared = np.einsum("nd,nd->n", x, x).astype(np.float64)
            self._norms += np.sqrt(squared).sum(), squared.sum()
            self._sum += x.sum(axis=0)

    def finish(self, of: str, state: dict[str, Any] | None = None) -> ShardRecord:
        """Write the header and return the record; no block may be added afterwards."""
        self._file.seek(0)
        self._file.write(self._column.header(self._rows))
        with_norms = self._column.dtype.is_floating_point
        return ShardRecord(
            of=of,
            rows=self._rows,
            xxh3=self._checksum.hexdigest(),
            blocks=tuple(self._block_checksums),
            sum_norm=float(self._norms[0]),
            sum_squared_norm=float(self._norms[1]),
            total=tuple(self._sum.tolist()) if with_norms else (),
            state=state,
        )


@contextmanager
def writing_shard(path: Path, column: StoredColumn) -> Iterator[ShardWriter]:
    """A writer of the shard at `path`, which is created atomically at the end, after a call of `finish`."""
    with (
        ThreadPoolExecutor(1, "panscope-shard") as executor,
        replacing(path) as temporary,
        temporary.open("wb", buffering=0) as file,
    ):
        yield ShardWriter(file, column, executor)  # type: ignore[arg-type]


def _float_pieces(stored: Tensor) -> Iterator[np.ndarray]:
    """Rows as float32, in pieces that fit into a core's cache; numpy arrays, as its sums do not start threads."""
    for piece in stored.split(max(1, min(_PIECE_ROWS, _PIECE_VALUES // stored.shape[1]))):
        if piece.dtype == torch.bfloat16:
            bits = piece.view(torch.uint16).numpy()
            yield np.left_shift(bits, 16, dtype=np.uint32, casting="unsafe").view(np.float32)
        else:
            yield piece.numpy()


def bytes_of(rows: Tensor) -> memoryview:
    """The bytes of rows on the CPU, without a copy if they are contiguous."""
    return memoryview(rows.contiguous().view(torch.uint8).numpy().reshape(-1))  # type: ignore[arg-type]


def check_size(path: Path, column: StoredColumn, rows: int, found: int) -> None:
    """Raise UserError if the file size `found` is not that of a shard of `rows` rows."""
    size = PAGE + rows * column.row_bytes
    if found != size:
        raise UserError(
            f"the file {str(path)!r} is damaged: it has {found} bytes instead of {size} for {rows} rows of "
            f"{column.row_bytes} bytes; take an undamaged copy"
        )


def check_header(path: Path, column: StoredColumn, rows: int, found: bytes) -> None:
    """Raise UserError if the header `found` is not that of a shard of `rows` rows."""
    if found != column.header(rows):
        raise UserError(
            f"the file {str(path)!r} is damaged: its header does not match its data; take an undamaged copy"
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translate the OSError of a file that cannot be read into a UserError."""
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
    """A shard on disk, mapped into memory."""

    def __init__(self, path: Path, column: StoredColumn, record: ShardRecord, block_rows: int) -> None:
        self._path, self._column, self._record, self._block_rows = path, column, record, block_rows
        self._checked = [False] * len(record.blocks)
        self._mapped = _map(path, column, record.rows)

    @property
    def rows(self) -> Tensor:
        """[N, D] a view of the map; read-only, and only after `check`."""
        return self._mapped.rows

    def check(self, first: int, count: int) -> None:
        """Verify the checksums of the blocks with `count` rows from `first` on, except those verified before.

        Raises UserError naming the file and the damaged rows.
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
                    "them and run the panscope collect command again"
                )
            self._checked[block] = True

    def fetch_ahead(self, first: int, count: int) -> None:
        """Ask the system to read these rows into memory."""
        row = self._column.row_bytes
        begin = (PAGE + first * row) // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapped.map.madvise(mmap.MADV_WILLNEED, begin, PAGE + (first + count) * row - begin)


def _map(path: Path, column: StoredColumn, rows: int) -> _Mapped:
    """Map the rows of a shard; raises UserError if its size or header is not that of a shard of `rows` rows."""
    size = PAGE + rows * column.row_bytes
    with reading(path), path.open("rb") as file:
        check_size(path, column, rows, os.fstat(file.fileno()).st_size)
        # Private and writable only because torch warns about read-only memory; nothing writes to it. NORESERVE, since
        # the system might otherwise refuse a writable map that is larger than its memory.
        private = mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0)
        mapped = mmap.mmap(file.fileno(), size, flags=private, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    check_header(path, column, rows, mapped[:PAGE])
    flat = torch.frombuffer(mapped, dtype=column.dtype, count=rows * column.width, offset=PAGE)
    return _Mapped(mapped, flat.view(rows, column.width))
