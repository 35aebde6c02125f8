"""Collection of activations: writes the rows of a source into the shards of a store, and can resume after any crash.

Shard k is written for all sites at once, then the record of each, and the tokens with their record last, which has the
state of the source. Shard k is complete when all these files exist. An interrupted collection resumes after the last
complete shard and writes the same bytes as an uninterrupted one. Sites added later must have the same rows.

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

_TENSOR_KEY = "int64"


class StoreWriter:
    """Writes the rows of `sites` into the store in `folder`: creates it, resumes it or adds sites to it."""

    def __init__(self, folder: Path, manifest: Manifest, sites: Mapping[Site, int]) -> None:
        """`sites` maps sites to widths; raises UserError if the folder has another store or other files."""
        self._folder = folder
        self._tokens = StoredColumn.of_tokens()
        self.manifest = self._open_manifest(manifest)
        columns = {site: self.manifest.column(site, width) for site, width in sites.items()}
        self._columns = {site: column for site, column in columns.items() if self._is_incomplete(site, column)}

    def _open_manifest(self, manifest: Manifest) -> Manifest:
        path = self._folder / FILE
        if path.exists():
            existing = read_manifest(path)
            check_same(existing, manifest, str(self._folder))
            return existing
        with translating_os_errors(self._folder):
            if self._folder.exists() and not self._is_usable():
                raise UserError(f"{str(self._folder)!r} exists and is not a store: choose another --out")
            write_sealed(path, manifest.model_dump(mode="json"))
        return manifest

    def _is_usable(self) -> bool:
        """Whether the folder is empty except for the lock and temporary files of an interrupted collection."""
        return self._folder.is_dir() and all(path.name.startswith(".") for path in self._folder.iterdir())

    def _is_incomplete(self, site: Site, column: StoredColumn) -> bool:
        """Whether any file of a site, or of the tokens, is missing."""
        rows = self.manifest.rows
        if rows is None or str(site) not in self.manifest.sites:
            return True
        return self._count_shards([column, self._tokens]) < self.manifest.cut.shards(rows)

    @property
    def missing(self) -> list[Site]:
        """The incomplete sites, which the source has to provide."""
        return list(self._columns)

    @property
    def rows(self) -> int:
        """Number of rows in complete shards of the incomplete sites."""
        return min(self.manifest.origin.wanted_rows, self._complete_shards() * self.manifest.shard_rows)

    def _complete_shards(self) -> int:
        return self._count_shards([*self._columns.values(), self._tokens])

    def _count_shards(self, columns: list[StoredColumn]) -> int:
        """Number of consecutive shards from the first on of which all these columns have their files."""
        names = [name for column in columns for name in (column.record, column.shard)]
        return next(n for n in itertools.count() if not all((self._folder / name(n)).is_file() for name in names))

    def write(self, source: RowSource, progress: Callable[[int], None] = lambda rows: None) -> Manifest:
        """Write the missing shards from `source`, whose batches are blocks; `progress` receives the number of rows.

        Raises UserError if writing fails, or if the rows differ from those already stored.
        """
        shard = self._complete_shards()
        if shard:
            source.load_state_dict(_tensors_from_json(self._record(self._tokens, shard - 1).state))
        cut, wanted = self.manifest.cut, self.manifest.origin.wanted_rows
        with translating_os_errors(self._folder):
            self._remove_temporary_files()
            while True:
                max_rows, rows = cut.rows_of(shard, wanted), 0
                before = min(wanted, shard * cut.shard_rows)
                progress(before)
                if max_rows:
                    rows = self._write_shard(shard, source, max_rows, lambda rows, n=before: progress(n + rows))
                shard += rows > 0
                if rows < cut.shard_rows:
                    return self._finish(shard)

    def _write_shard(self, shard: int, source: RowSource, max_rows: int, on_progress: Callable[[int], None]) -> int:
        """Write at most `max_rows` rows of every column and return how many; `on_progress` gets the count per block."""
        first = _next_batch(source)
        if first is None:
            return 0
        rows, block = 0, self.manifest.block_rows
        with ExitStack() as stack:
            writers = {site: self._writer(stack, column, shard) for site, column in self._columns.items()}
            tokens = self._writer(stack, self._tokens, shard)
            batch: ActivationBatch | None = first
            while batch is not None:
                assert rows % block == 0 and len(batch) <= block, "only the last block of a source may be short"
                batch = batch.select(slice(max_rows - rows))
                for site, writer in writers.items():
                    writer.write(batch.rows[site])
                tokens.write(_token_fields(batch))
                rows += len(batch)
                on_progress(rows)
                batch = _next_batch(source) if rows < max_rows else None
            name = partial(shard_name, self.manifest, number=shard)
            records = {column: writers[site].finish(name(column)) for site, column in self._columns.items()}
            records[self._tokens] = tokens.finish(name(self._tokens), _tensors_to_json(source.state_dict()))
            self._check_same_rows(shard, records[self._tokens])
        for column, record in records.items():
            self._write_record(column, shard, record)
        return rows

    def _writer(self, stack: ExitStack, column: StoredColumn, shard: int) -> ShardWriter:
        return stack.enter_context(writing_shard(self._folder / column.shard(shard), column))

    def _check_same_rows(self, shard: int, new: ShardRecord) -> None:
        """Raise UserError if the token column differs from the one already stored for other sites."""
        if not (self._folder / self._tokens.record(shard)).is_file():
            return
        if self._record(self._tokens, shard).xxh3 != new.xxh3:
            raise UserError(
                f"the rows of shard {shard} differ from those in the store {str(self._folder)!r}: the text, the "
                "tokenizer or their versions changed since it was created; collect into another folder"
            )

    def _write_record(self, column: StoredColumn, shard: int, record: ShardRecord) -> None:
        write_sealed(self._folder / column.record(shard), record.model_dump(mode="json"))

    def _record(self, column: StoredColumn, shard: int) -> ShardRecord:
        return read_record(self._folder / column.record(shard))

    def _remove_temporary_files(self) -> None:
        """Remove the unfinished files of a killed process."""
        for temporary in self._folder.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)

    def _finish(self, shards: int) -> Manifest:
        """Mark the rows and sites as complete in the manifest."""
        sites = dict(self.manifest.sites)
        rows = sum(self._record(self._tokens, shard).rows for shard in range(shards))
        if not rows:
            raise UserError("data.text: there is no row of activations to store; give more text")
        for site, column in self._columns.items():
            sites[str(site)] = site_summary([self._record(column, shard) for shard in range(shards)])
        self.manifest = self.manifest.replace(rows=rows, sites=dict(sorted(sites.items())))
        write_sealed(self._folder / FILE, self.manifest.model_dump(mode="json"))
        return self.manifest


def site_summary(records: list[ShardRecord]) -> StoredSite:
    """The width and means of a site, from the records of all its shards."""
    rows = sum(record.rows for record in records)
    total = torch.tensor([record.total for record in records], dtype=torch.float64).sum(dim=0)
    return StoredSite(
        width=len(total),
        mean_norm=sum(record.sum_norm for record in records) / rows,
        mean_squared_norm=sum(record.sum_squared_norm for record in records) / rows,
        mean=tuple((total / rows).tolist()),
    )


def shard_name(manifest: Manifest, column: StoredColumn, number: int) -> str:
    """The identifier of a shard in its record."""
    return f"{column.folder}/{number:05d} of {manifest.identity}"


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a store; raises UserError if it is missing, damaged or in another format version."""
    return Manifest.read(read_sealed(path), str(path))


def read_record(path: Path) -> ShardRecord:
    """Read the record of a shard; raises UserError if it is missing or damaged."""
    return ShardRecord.read(read_sealed(path), str(path))


def checked_record(path: Path, manifest: Manifest, column: StoredColumn, number: int) -> ShardRecord:
    """Read the record of a shard of a complete store; raises UserError if it is damaged or from another shard."""
    record = read_record(path)
    assert manifest.rows is not None
    rows, of = manifest.cut.rows_of(number, manifest.rows), shard_name(manifest, column, number)
    if (record.of, record.rows, len(record.blocks)) != (of, rows, -(-rows // manifest.block_rows)):
        raise UserError(
            f"the file {str(path)!r} has {record.rows} rows of shard {record.of}, and according to {FILE} it must have "
            f"{rows} rows of shard {of}: take both from one copy of the store"
        )
    return record


@contextmanager
def translating_os_errors(folder: Path) -> Iterator[None]:
    """Translate the OSError of a failed write to the store into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = "the disk is full; free some space and run the same command again to resume"
        else:
            reason = error.reason if isinstance(error, WriteError) else error.strerror or error
            why = f"{reason}; make the folder writable, or choose another --out"
        raise UserError(f"the store {str(folder)!r} cannot be written: {why}") from error


def _next_batch(source: RowSource) -> ActivationBatch | None:
    """The next block; an OSError in the source is reported as such, not as a failed write to the store."""
    try:
        return next(source, None)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"the activations cannot be computed: {error}; fix this and run the same command again"
        ) from error


def _token_fields(batch: ActivationBatch) -> Tensor:
    """[n, 3] the rows of the token column."""
    return torch.stack([batch.token_ids, batch.document_ids, batch.positions], dim=1)


def _tensors_to_json(value: Any) -> Any:
    """A state as JSON values; its tensors must be int64, as token and document ids are."""
    if isinstance(value, Tensor):
        assert value.dtype == torch.int64
        return {_TENSOR_KEY: value.tolist()}
    if isinstance(value, dict):
        return {key: _tensors_to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tensors_to_json(item) for item in value]
    return value


def _tensors_from_json(value: Any) -> Any:
    """The inverse of `_tensors_to_json`."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR_KEY}:
            return torch.tensor(value[_TENSOR_KEY], dtype=torch.int64)
        return {key: _tensors_from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tensors_from_json(item) for item in value]
    return value
