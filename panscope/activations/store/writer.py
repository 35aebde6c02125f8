"""Collecting: rows from a source into the shards of a store, so that a kill at any point loses nothing.

A shard is written for all sites at once, and for each its record after it; last of all the tokens, whose record says
where the source stands. A shard counts as done when all of these are there. So what was interrupted is done again from
the last shard that is done, with the same bytes, and sites that are added later run through the same rows.

Shape letters: n rows of a batch, D width of a site.
"""

import errno
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope.activations.source import RowSource
from panscope.activations.store.layout import StoredColumn
from panscope.activations.store.manifest import FILE, Manifest, StoredSite, check_same
from panscope.activations.store.shard import ShardRecord, ShardWriter, writing_shard
from panscope.storage.atomic import WriteError
from panscope.storage.sealed import read_sealed, write_sealed
from panscope.types import ActivationBatch, Site, UserError

_TENSOR = "int64"


class StoreWriter:
    """Writes the rows of `sites` into the store in `folder`, which is begun, gone on with or added to."""

    def __init__(self, folder: Path, manifest: Manifest, sites: Mapping[Site, int]) -> None:
        """`sites` and their widths; raises UserError if the folder holds something else."""
        self._folder = folder
        self._tokens = StoredColumn.of_tokens()
        self.manifest = self._begun(manifest)
        columns = {site: self.manifest.column(site, width) for site, width in sites.items()}
        self._columns = {site: column for site, column in columns.items() if self._lacks(site, column)}

    def _begun(self, manifest: Manifest) -> Manifest:
        path = self._folder / FILE
        if path.exists():
            begun = read_manifest(path)
            check_same(begun, manifest, str(self._folder))
            return begun
        with saying_what_failed(self._folder):
            if self._folder.exists() and not self._is_free():
                raise UserError(f"{str(self._folder)!r} exists and is no store: choose another --out")
            write_sealed(path, manifest.model_dump(mode="json"))
        return manifest

    def _is_free(self) -> bool:
        """Whether the folder holds nothing but the lock of this process, and what a kill left of a first manifest."""
        return self._folder.is_dir() and all(path.name.startswith(".") for path in self._folder.iterdir())

    def _lacks(self, site: Site, column: StoredColumn) -> bool:
        """Whether anything of a site, or of the tokens beside it, is not there."""
        rows = self.manifest.rows
        if rows is None or str(site) not in self.manifest.sites:
            return True
        return self._done([column, self._tokens]) < self.manifest.cut.shards(rows)

    @property
    def missing(self) -> list[Site]:
        """The sites of which not everything is there yet: those that the source has to give."""
        return list(self._columns)

    @property
    def rows(self) -> int:
        """How many rows of all missing sites are there, at least."""
        return min(self.manifest.origin.wanted_rows, self._shards_done() * self.manifest.shard_rows)

    def _shards_done(self) -> int:
        return self._done([*self._columns.values(), self._tokens])

    def _done(self, columns: list[StoredColumn]) -> int:
        """How many shards there are of all these, from the first on."""
        names = [name for column in columns for name in (column.record, column.shard)]
        return next(n for n in itertools.count() if not all((self._folder / name(n)).is_file() for name in names))

    def write(self, source: RowSource, progress: Callable[[int], None] = lambda rows: None) -> Manifest:
        """Write what is missing of the rows of `source`, which gives blocks; `progress` hears of rows done.

        Raises UserError if the disk is full or refuses, or if the rows are not those that are stored already.
        """
        shard = self._shards_done()
        if shard:
            source.load_state_dict(_tensors_back(self._record(self._tokens, shard - 1).state))
        cut, wanted = self.manifest.cut, self.manifest.origin.wanted_rows
        with saying_what_failed(self._folder):
            self._sweep()
            while True:
                room = cut.rows_of(shard, wanted)
                before = min(wanted, shard * cut.shard_rows)
                progress(before)
                rows = self._write_shard(shard, source, room, lambda rows, n=before: progress(n + rows)) if room else 0
                shard += rows > 0
                if rows < cut.shard_rows:
                    return self._finish(shard)

    def _write_shard(self, shard: int, source: RowSource, room: int, written: Callable[[int], None]) -> int:
        """Write at most `room` rows of every column; how many there were, which `written` hears block by block."""
        first = _next(source)
        if first is None:
            return 0
        rows, block = 0, self.manifest.block_rows
        with ExitStack() as stack:
            writers = {site: self._writer(stack, column, shard) for site, column in self._columns.items()}
            tokens = self._writer(stack, self._tokens, shard)
            batch: ActivationBatch | None = first
            while batch is not None:
                assert rows % block == 0 and len(batch) <= block, "only the last block of a source may be short"
                batch = batch.select(slice(room - rows))
                for site, writer in writers.items():
                    writer.write(batch.rows[site])
                tokens.write(_provenance(batch))
                rows += len(batch)
                written(rows)
                batch = _next(source) if rows < room else None
            name = partial(name_of, self.manifest, number=shard)
            found = {column: writers[site].finish(name(column)) for site, column in self._columns.items()}
            found[self._tokens] = tokens.finish(name(self._tokens), _without_tensors(source.state_dict()))
            self._check_same_rows(shard, found[self._tokens])
        for column, record in found.items():
            self._write_record(column, shard, record)
        return rows

    def _writer(self, stack: ExitStack, column: StoredColumn, shard: int) -> ShardWriter:
        return stack.enter_context(writing_shard(self._folder / column.shard(shard), column))

    def _check_same_rows(self, shard: int, now: ShardRecord) -> None:
        """Rows that are there already must be those that come now, whatever sites they are of."""
        if not (self._folder / self._tokens.record(shard)).is_file():
            return
        if self._record(self._tokens, shard).xxh3 != now.xxh3:
            raise UserError(
                f"the rows of shard {shard} are not those in the store {str(self._folder)!r}: the text, the tokenizer "
                "or their versions changed since it was begun; collect into another folder"
            )

    def _write_record(self, column: StoredColumn, shard: int, record: ShardRecord) -> None:
        write_sealed(self._folder / column.record(shard), record.model_dump(mode="json"))

    def _record(self, column: StoredColumn, shard: int) -> ShardRecord:
        return read_record(self._folder / column.record(shard))

    def _sweep(self) -> None:
        """Remove what a killed process had begun to write."""
        for temporary in self._folder.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)

    def _finish(self, shards: int) -> Manifest:
        """Write down that all rows of these sites are there."""
        sites = dict(self.manifest.sites)
        rows = sum(self._record(self._tokens, shard).rows for shard in range(shards))
        if not rows:
            raise UserError("data.text: there is no row of activations to store; give more text")
        for site, column in self._columns.items():
            sites[str(site)] = summed([self._record(column, shard) for shard in range(shards)])
        self.manifest = self.manifest.replace(rows=rows, sites=dict(sorted(sites.items())))
        write_sealed(self._folder / FILE, self.manifest.model_dump(mode="json"))
        return self.manifest


def summed(found: list[ShardRecord]) -> StoredSite:
    """What the records of all shards of a site come to."""
    rows = sum(record.rows for record in found)
    total = torch.tensor([record.total for record in found], dtype=torch.float64).sum(dim=0)
    return StoredSite(
        width=len(total),
        mean_norm=sum(record.sum_norm for record in found) / rows,
        mean_squared_norm=sum(record.sum_squared_norm for record in found) / rows,
        mean=tuple((total / rows).tolist()),
    )


def name_of(manifest: Manifest, column: StoredColumn, number: int) -> str:
    """What a shard is called in its record."""
    return f"{column.folder}/{number:05d} of {manifest.identity}"


def read_manifest(path: Path) -> Manifest:
    """The manifest of a store; raises UserError if it is missing, damaged or of another format."""
    return Manifest.read(read_sealed(path), str(path))


def read_record(path: Path) -> ShardRecord:
    """The record of a shard; raises UserError if it is missing or damaged."""
    return ShardRecord.read(read_sealed(path), str(path))


def checked_record(path: Path, manifest: Manifest, column: StoredColumn, number: int) -> ShardRecord:
    """The record of a shard of a finished store; raises UserError if it is damaged or that of another shard."""
    record = read_record(path)
    assert manifest.rows is not None
    rows, of = manifest.cut.rows_of(number, manifest.rows), name_of(manifest, column, number)
    if (record.of, record.rows, len(record.blocks)) != (of, rows, -(-rows // manifest.block_rows)):
        raise UserError(
            f"the file {str(path)!r} tells of {record.rows} rows of shard {record.of}, and {FILE} of {rows} rows of "
            f"shard {of}: take both from one copy of the store"
        )
    return record


@contextmanager
def saying_what_failed(folder: Path) -> Iterator[None]:
    """Turn what the system says of a full disk or a refused write into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = "the disk is full; make room and give the same command again, it goes on where it was"
        else:
            reason = error.reason if isinstance(error, WriteError) else error.strerror or error
            why = f"{reason}; make the folder writable, or choose another --out"
        raise UserError(f"the store {str(folder)!r} cannot be written: {why}") from error


def _next(source: RowSource) -> ActivationBatch | None:
    """The next block; what the system refuses the source is no fault of the store's folder."""
    try:
        return next(source, None)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"the rows cannot be made: {error}; see to it and give the same command again") from error


def _provenance(batch: ActivationBatch) -> Tensor:
    """[n, 3]."""
    return torch.stack([batch.token_ids, batch.document_ids, batch.positions], dim=1)


def _without_tensors(value: Any) -> Any:
    """A state as JSON values; what tensors it has are token and document ids."""
    if isinstance(value, Tensor):
        assert value.dtype == torch.int64
        return {_TENSOR: value.tolist()}
    if isinstance(value, dict):
        return {key: _without_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item) for item in value]
    return value


def _tensors_back(value: Any) -> Any:
    """Undo `_without_tensors`."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return torch.tensor(value[_TENSOR], dtype=torch.int64)
        return {key: _tensors_back(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tensors_back(item) for item in value]
    return value
