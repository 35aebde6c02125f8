"""Write and read rates of an activation store, against plain files (the disk) and memory copies (the page cache).

    python -m benchmarks.data.store --folder A_FOLDER_ON_THE_DISK

Each measure alternates with its plain equivalent:

- write: StoreWriter, with checksums and norms, against writing the same number of bytes to one file; both flushed.
- cold: a first epoch of StoredRows, shuffled and with checksums verified, with nothing in the page cache, against
  reading the same files from the first to the last byte.
- in order: all rows in stored order by Store.read into one buffer, fetched ahead, against the same.
- first, later: the first epoch, in which every block is verified, and the one after it, with everything in the page
  cache, against copying as many bytes from one tensor to another in pieces of the same size.
- copy: all rows in stored order by Store.read into one buffer, in a later epoch, against the same copy.

Every result is a line of JSON with the machine in it.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.other_load import OtherLoad
from benchmarks.support.tables import markdown_table, wide_console
from panscope.activations.store.layout import StoredColumn, cut_for
from panscope.activations.store.manifest import Manifest, Origin, StoredType
from panscope.activations.store.store import Store
from panscope.activations.store.stored import StoredRows
from panscope.activations.store.windows import Windows
from panscope.activations.store.writer import StoreWriter
from panscope.lms.identity import ModelIdentity
from panscope.storage.json_lines import JsonLines
from panscope.types import ActivationBatch, Site, UserError

BLOCK_ROWS = 4096
PIECE = 16 << 20
"""Bytes that the plain equivalents write or read at a time."""


@dataclass(frozen=True)
class Case:
    """The shape of the stored rows."""

    name: str
    dtype: StoredType
    width: int
    sites: int


CASES = (Case("2304 bfloat16", "bfloat16", 2304, 1), Case("4 x 64 float32", "float32", 64, 4))


@dataclass(frozen=True)
class Options:
    """Write and read rates of an activation store, against plain files and memory copies."""

    folder: Path
    """A folder on the disk to measure; what is written there is removed."""
    gib: float = 2.0
    """GiB of rows of each case."""
    shard_gib: float = 0.5
    """GiB of one shard."""
    window_mib: int = 128
    """MiB of rows of all sites that a reader shuffles together."""
    batch: int = 4096
    """Rows of a training batch."""
    cases: tuple[str, ...] = tuple(case.name for case in CASES)
    """Names of the cases to measure."""
    measures: tuple[str, ...] = ("write", "cold", "in order", "first", "later", "copy")
    """Measures to take."""
    repeats: int = 5
    """Pairs of each measure and its plain equivalent."""
    threads: int = 1
    """Threads of torch; a store has one more that reads ahead."""
    label: str = ""
    """A note that is written with the results."""
    out: Path = Path("benchmarks/results/store.jsonl")
    """Results are appended to this file."""


class SameRows:
    """The same block of random rows again and again, so that no time is spent on making them."""

    device = torch.device("cpu")

    def __init__(self, case: Case, rows: int) -> None:
        self._left, self._given = rows, 0
        dtype = getattr(torch, case.dtype)
        self._rows = {site: torch.randn(BLOCK_ROWS, case.width).to(dtype) for site in _sites(case)}

    def __iter__(self) -> "SameRows":
        return self

    def __next__(self) -> ActivationBatch:
        """The next block."""
        if self._given >= self._left:
            raise StopIteration
        number = torch.arange(self._given, self._given + BLOCK_ROWS)
        self._given += BLOCK_ROWS
        return ActivationBatch(self._rows, number, number, number)

    def state_dict(self) -> dict[str, Any]:
        """The number of rows given so far."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`."""
        self._given = state["given"]


class Bench:
    """The measures of one case: functions that return seconds, for the store and for its plain equivalent."""

    def __init__(self, options: Options, case: Case) -> None:
        self._options, self._case = options, case
        row = case.width * case.sites * (2 if case.dtype == "bfloat16" else 4)
        self._rows = int(options.gib * 2**30) // (row * BLOCK_ROWS) * BLOCK_ROWS
        if not self._rows:
            least = row * BLOCK_ROWS / 2**30
            raise UserError(
                f"gib is {options.gib:g}, less than a block of the case {case.name!r}: give {least:.3f} or more"
            )
        self._store, self._plain = options.folder / "store", options.folder / "plain"
        self._manifest = _manifest(options, case, self._rows)

    def measures(self) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
        """By name, in the order in which they are to be taken."""
        return {
            "write": (self._write, self._write_plainly),
            "cold": (lambda: self._epoch(cold=True), self._read_plainly),
            "in order": (lambda: self._in_order(cold=True), self._read_plainly),
            "first": (lambda: self._epoch(cold=False), self._copy_plainly),
            "later": (lambda: self._epoch(cold=False, later=True), self._copy_plainly),
            "copy": (lambda: self._in_order(cold=False), self._copy_plainly),
        }

    @property
    def bytes(self) -> int:
        """Bytes of all rows and their tokens."""
        return sum(self._rows * column.row_bytes for column in self._columns())

    def _columns(self) -> list[StoredColumn]:
        sites = [self._manifest.column(site, self._case.width) for site in _sites(self._case)]
        return [*sites, StoredColumn.of_tokens()]

    def _write(self) -> float:
        shutil.rmtree(self._store, ignore_errors=True)
        os.sync()
        writer = StoreWriter(self._store, self._manifest, dict.fromkeys(_sites(self._case), self._case.width))
        source = SameRows(self._case, self._rows)
        begin = time.perf_counter()
        writer.write(source)
        return time.perf_counter() - begin

    def _write_plainly(self) -> float:
        data = memoryview(os.urandom(PIECE))
        self._plain.unlink(missing_ok=True)
        os.sync()
        begin, left = time.perf_counter(), self.bytes
        with self._plain.open("wb", buffering=0) as file:
            while left:
                left -= file.write(data[:left])
            os.fsync(file.fileno())
        seconds = time.perf_counter() - begin
        self._plain.unlink()
        return seconds

    def _files(self) -> list[Path]:
        return sorted(self._store.rglob("*.safetensors"))

    def _read_plainly(self) -> float:
        _forget(self._files())
        buffer = bytearray(PIECE)
        begin = time.perf_counter()
        for path in self._files():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        return time.perf_counter() - begin

    def _epoch(self, *, cold: bool, later: bool = False) -> float:
        """All batches of the first epoch, or with `later` of the second."""
        (_forget if cold else _remember)(self._files())
        store = Store.open(self._store)
        cut = store.manifest.cut
        row = self.bytes // self._rows
        windows = Windows(store.rows, self._options.window_mib * 2**20 // row, cut)
        rows = StoredRows(store, store.sites, windows, batch=self._options.batch, seed=0)
        for _ in range(store.rows // self._options.batch if later else 0):
            next(rows)
        begin = time.perf_counter()
        for _ in range(store.rows // self._options.batch):
            next(rows)
        return time.perf_counter() - begin

    def _in_order(self, *, cold: bool) -> float:
        """All rows into one buffer; from the disk they are fetched and verified ahead."""
        (_forget if cold else _remember)(self._files())
        store = Store.open(self._store)
        columns = store.columns(store.sites)
        buffers = [torch.empty(BLOCK_ROWS, column.width, dtype=column.dtype) for column in columns]
        if not cold:
            store.fetch_ahead(columns, 0, store.rows)
        with ThreadPoolExecutor(1) as reader:
            begin = time.perf_counter()
            firsts = range(0, store.rows, self._ahead_rows())
            ahead = [reader.submit(store.fetch_ahead, columns, *self._span(first)) for first in firsts]
            for first, fetched in zip(firsts, ahead, strict=True):
                fetched.result()
                for block in range(first, sum(self._span(first)), BLOCK_ROWS):
                    for column, buffer in zip(columns, buffers, strict=True):
                        buffer.copy_(store.read(column, block, BLOCK_ROWS))
            return time.perf_counter() - begin

    def _ahead_rows(self) -> int:
        """The rows of about 16 MiB."""
        return BLOCK_ROWS * max(1, PIECE // (BLOCK_ROWS * (self.bytes // self._rows)))

    def _span(self, first: int) -> tuple[int, int]:
        return first, min(self._ahead_rows(), self._rows - first)

    def _copy_plainly(self) -> float:
        """As many bytes, from a tensor of up to 256 MiB into one as large as a batch of one column."""
        pieces = [(column, self._options.batch * column.row_bytes) for column in self._columns()]
        batches = self._rows // self._options.batch
        pairs = [_pair(size, max(1, min(batches, (256 << 20) // size))) for _, size in pieces]
        begin = time.perf_counter()
        for batch in range(batches):
            for source, destination in pairs:
                destination.copy_(source[batch % len(source)])
        return time.perf_counter() - begin


def _pair(size: int, pieces: int) -> tuple[Tensor, Tensor]:
    """A source [pieces, size] and a destination [size] of bytes, in memory that is already allocated."""
    return torch.ones(pieces, size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)


def _forget(paths: list[Path]) -> None:
    """Drop the files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _remember(paths: list[Path]) -> None:
    """Read the files into the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(PIECE):
                pass


def _sites(case: Case) -> list[Site]:
    return [Site(layer, "resid_post") for layer in range(case.sites)]


def _manifest(options: Options, case: Case, rows: int) -> Manifest:
    origin = Origin(
        model="none",
        revision=None,
        model_identity=ModelIdentity(weights="", configuration={}, tokenizer="", transformers=""),
        model_dtype=case.dtype,
        attention="none",
        data={},
        special_tokens="drop",
        seed=0,
        wanted_rows=rows,
        bucket_rows=BLOCK_ROWS,
    )
    widest = max(StoredColumn.of_tokens().row_bytes, case.width * (2 if case.dtype == "bfloat16" else 4))
    cut = cut_for(int(options.shard_gib * 2**30), BLOCK_ROWS, widest)
    return Manifest(origin=origin, dtype=case.dtype, shard_rows=cut.shard_rows, block_rows=cut.block_rows, versions={})


def main(options: Options) -> None:
    """Measure, record and print."""
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [line for case in CASES if case.name in options.cases for line in _measured(options, case)]
    JsonLines(options.out).append(lines)
    wide_console().print(table(lines))


def _measured(options: Options, case: Case) -> Iterator[dict[str, Any]]:
    bench = Bench(options, case)
    facts = machine.facts()
    setting = {name: getattr(options, name) for name in ("gib", "shard_gib", "window_mib", "batch", "label")}
    measures = bench.measures()
    try:
        if "write" not in options.measures:
            measures["write"][0]()
        for name in options.measures:
            load = OtherLoad()
            taken = [[_Taken.of(run, bench.bytes) for run in measures[name]] for _ in range(options.repeats)]
            ours, plain = zip(*taken, strict=True)
            yield {
                "measure": name,
                "case": asdict(case),
                **setting,
                "gib_per_second": [one.rate for one in ours],
                "plain_gib_per_second": [one.rate for one in plain],
                "share": statistics.median(one.rate for one in ours) / statistics.median(one.rate for one in plain),
                "share_of_pairs": statistics.median(a.rate / b.rate for a, b in taken),
                "cpu_seconds_per_gib": [statistics.median(one.cpu for one in of) for of in (ours, plain)],
                "others": load.share(),
                "date": time.strftime("%F"),
                "machine": facts,
            }
    finally:
        shutil.rmtree(options.folder / "store", ignore_errors=True)


@dataclass(frozen=True)
class _Taken:
    rate: float
    """GiB/s."""
    cpu: float
    """CPU seconds of all threads for a GiB, including the preparations that are not timed."""

    @classmethod
    def of(cls, run: Callable[[], float], size: int) -> "_Taken":
        begin, gib = time.process_time(), size / 2**30
        seconds = run()
        return cls(gib / seconds, (time.process_time() - begin) / gib)


def table(lines: list[dict[str, Any]]) -> Table:
    """A row for each measure: median, lowest and highest in GiB/s, and the store's median over the plain one.

    `by pairs` is the median of the ratios of each pair, which a disk that others use affects less.
    """
    headings = ("GiB/s", "lowest", "highest", "plain GiB/s", "lowest", "highest")
    shown = markdown_table(("case", "measure", *headings, "store / plain", "by pairs", "load of others"))
    for line in lines:
        found: list[str] = []
        for rates in (line["gib_per_second"], line["plain_gib_per_second"]):
            found += [f"{rate:.2f}" for rate in (statistics.median(rates), min(rates), max(rates))]
        shares = [line["share"], line["share_of_pairs"], line["others"]]
        found += ["-" if share is None else f"{share:.0%}" for share in shares]
        shown.add_row(line["case"]["name"], line["measure"], *found)
    return shown


if __name__ == "__main__":
    run_command(main, Options)
