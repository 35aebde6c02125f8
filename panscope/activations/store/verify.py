"""Verification of a whole store: reads every file and reports all that are damaged, not only the first.

Files are read with `read`, not through a memory map, so that a file that shrinks meanwhile is reported and does not
crash the process.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from panscope.activations.store.files import Files
from panscope.activations.store.layout import PAGE, StoredColumn
from panscope.activations.store.manifest import FILE, Manifest
from panscope.activations.store.shard import ShardRecord, check_header, check_size, reading
from panscope.activations.store.writer import checked_record, read_manifest, site_summary
from panscope.types import Site, UserError

Progress = Callable[[int, int], None]
"""Called with the number of bytes read and the total."""
_MAX_SPANS = 8
"""Maximum number of damaged row ranges listed for one file; of further ones only the number is given."""


def verify(files: Files, progress: Progress = lambda done, total: None) -> list[str]:
    """One message for each file that is damaged, missing or from another store; empty if the store is intact."""
    try:
        manifest = read_manifest(files.path(FILE))
    except UserError as error:
        return [str(error)]
    if manifest.rows is None:
        return [f"the store {files.where!r} is not complete: run the panscope collect command again"]
    return list(_Check(files, manifest, progress).damage())


class _Check:
    """One pass over all files of a complete store."""

    def __init__(self, files: Files, manifest: Manifest, progress: Progress) -> None:
        assert manifest.rows is not None
        self._files, self._manifest, self._progress, self._rows = files, manifest, progress, manifest.rows
        sites = {name: manifest.column(Site.parse(name), site.width) for name, site in manifest.sites.items()}
        self._columns = {**sites, "": StoredColumn.of_tokens()}
        self._read = 0
        self._total = sum(self._rows * column.row_bytes for column in self._columns.values())

    def damage(self) -> Iterator[str]:
        """Messages about all columns."""
        for name, column in self._columns.items():
            records: list[ShardRecord] = []
            for number in range(self._manifest.cut.shards(self._rows)):
                self._fetch_ahead(column, number + 1)
                yield from self._shard(column, number, records)
            if name and len(records) == self._manifest.cut.shards(self._rows):
                yield from self._sums(name, records)

    def _fetch_ahead(self, column: StoredColumn, number: int) -> None:
        if number < self._manifest.cut.shards(self._rows):
            self._files.fetch_ahead([column.record(number), column.shard(number)])

    def _shard(self, column: StoredColumn, number: int, records: list[ShardRecord]) -> Iterator[str]:
        """Messages about a shard and its record, which is appended to `records` if it is valid."""
        record = None
        try:
            record = checked_record(self._files.path(column.record(number)), self._manifest, column, number)
            records.append(record)
        except UserError as error:
            yield str(error)
        rows = self._manifest.cut.rows_of(number, self._rows)
        end = self._read + rows * column.row_bytes
        try:
            yield from self._data(self._files.path(column.shard(number)), column, rows, record)
        except UserError as error:
            yield str(error)
        self._advance(end - self._read)

    def _data(self, path: Path, column: StoredColumn, rows: int, record: ShardRecord | None) -> Iterator[str]:
        """Messages about the size and header of a shard, and about its checksums if it has a valid record."""
        with reading(path), path.open("rb", buffering=0) as file:
            check_size(path, column, rows, path.stat().st_size)
            check_header(path, column, rows, file.read(PAGE))
            if record is None:
                return
            whole, blocks = xxhash.xxh3_64(), []
            while data := file.read(self._manifest.block_rows * column.row_bytes):
                whole.update(data)
                blocks.append(xxhash.xxh3_64_hexdigest(data))
                self._advance(len(data))
        pairs = zip(blocks, record.blocks, strict=False)
        bad = [block for block, (actual, recorded) in enumerate(pairs) if actual != recorded]
        if bad or len(blocks) != len(record.blocks):
            yield (
                f"the file {str(path)!r} is damaged: rows {self._spans(bad, rows)} do not match their checksums in "
                f"{path.stem}.json beside it; take undamaged copies of both, or delete them and run the panscope "
                "collect command again"
            )
        elif whole.hexdigest() != record.xxh3:
            yield f"the file {str(path.with_suffix('.json'))!r} is damaged: its checksum does not match the shard"

    def _spans(self, blocks: list[int], rows: int) -> str:
        """The row ranges of these blocks as text: adjacent blocks are merged, and a long list is shortened."""
        size, spans = self._manifest.block_rows, list[list[int]]()
        for block in blocks:
            begin, end = block * size, min(rows, (block + 1) * size) - 1
            if spans and spans[-1][1] + 1 == begin:
                spans[-1][1] = end
            else:
                spans.append([begin, end])
        shown = [f"{begin} to {end}" for begin, end in spans[:_MAX_SPANS]]
        more = len(spans) - len(shown)
        return ", ".join(shown) + (f" and {more} more ranges" if more else "")

    def _sums(self, name: str, records: list[ShardRecord]) -> Iterator[str]:
        """A message if the manifest's norms of a site do not match its records."""
        if site_summary(records) != self._manifest.sites[name]:
            yield (
                f"the file {FILE!r} of the store {self._files.where!r} is damaged: the norms of site {name!r} do not "
                "match its records; take an undamaged copy"
            )

    def _advance(self, count: int) -> None:
        self._read += count
        self._progress(self._read, self._total)
