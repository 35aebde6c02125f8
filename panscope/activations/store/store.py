"""Reading a store: rows of every site by number, memory-mapped and verified against their checksums.

Several trainers on one machine share the system's page cache. Nothing here writes.

Shape letters: N rows of the store, B requested rows, D width of a site.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from panscope.activations.norms import SiteNorms
from panscope.activations.store.files import Files, LocalFiles
from panscope.activations.store.layout import StoredColumn
from panscope.activations.store.manifest import FILE, Manifest
from panscope.activations.store.shard import Shard, reading
from panscope.activations.store.writer import checked_record, read_manifest
from panscope.types import Site, UserError


class Store:
    """A complete store of `rows` rows."""

    def __init__(self, files: Files) -> None:
        """Raises UserError if the manifest is missing or damaged, or if the store is not complete."""
        self._files = files
        self.manifest: Manifest = read_manifest(files.path(FILE))
        if self.manifest.rows is None:
            raise UserError(f"the store {files.where!r} is not complete: run the panscope collect command again")
        self.rows: int = self.manifest.rows
        self._shards: dict[tuple[StoredColumn, int], Shard] = {}

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open the store in a folder; raises UserError if there is none."""
        with reading(folder / FILE):
            exists = (folder / FILE).is_file()
        if not exists:
            raise UserError(f"{str(folder)!r} is not a store: it has no {FILE}; give the folder of a panscope collect")
        return cls(LocalFiles(folder))

    @property
    def where(self) -> str:
        """The store's folder or address."""
        return self._files.where

    @property
    def sites(self) -> tuple[Site, ...]:
        """The store's sites, in the model's order."""
        return tuple(sorted(Site.parse(name) for name in self.manifest.sites))

    def norms(self, site: Site) -> SiteNorms:
        """Means over all rows of a site."""
        return self.manifest.norms(site)

    def check_has(self, sites: Sequence[Site]) -> None:
        """Raise UserError if the store lacks one of the sites."""
        for site in sites:
            if str(site) not in self.manifest.sites:
                raise UserError(
                    f"the store {self.where!r} has no site {str(site)!r}, only {', '.join(self.manifest.sites)}: "
                    "collect it into the same store, or choose another site"
                )

    def columns(self, sites: Sequence[Site]) -> list[StoredColumn]:
        """The columns of `sites`, followed by that of the tokens."""
        self.check_has(sites)
        manifest = self.manifest
        return [*(manifest.column(site, manifest.sites[str(site)].width) for site in sites), StoredColumn.of_tokens()]

    def read(self, column: StoredColumn, first: int, count: int) -> Tensor:
        """[count, D] the rows from `first` on, read-only and verified: a view of the file if they are in one shard."""
        pieces = []
        for shard, begin, number in self._pieces(first, count):
            opened = self.shard(column, shard)
            opened.check(begin, number)
            pieces.append(opened.rows[begin : begin + number])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def take(self, column: StoredColumn, index: Tensor) -> Tensor:
        """[B, D] copies of the rows at `index` [B] int64, in that order and not verified: `check` them before."""
        return self.take_all([column], index)[0]

    def take_all(self, columns: Sequence[StoredColumn], index: Tensor) -> list[Tensor]:
        """`take` for several columns."""
        size = self.manifest.shard_rows
        first, last = (int(row) // size for row in index.aminmax())
        if first == last:
            index = index - first * size
            return [self.shard(column, first).rows.index_select(0, index) for column in columns]
        results = [torch.empty(len(index), column.width, dtype=column.dtype) for column in columns]
        shards = index // size
        for shard in range(first, last + 1):
            here = (shards == shard).nonzero().squeeze(1)
            if len(here):
                inside = index[here] - shard * size
                for column, rows in zip(columns, results, strict=True):
                    rows[here] = self.shard(column, shard).rows.index_select(0, inside)
        return results

    def check(self, column: StoredColumn, first: int, count: int) -> None:
        """Verify the rows' checksums, if not done before; raises UserError naming the damaged file."""
        for shard, begin, number in self._pieces(first, count):
            self.shard(column, shard).check(begin, number)

    def fetch_ahead(self, columns: Sequence[StoredColumn], first: int, count: int) -> None:
        """Read these rows into memory and verify them; returns when they are verified."""
        pieces = self._pieces(first, count)
        names = [name(shard) for column in columns for shard, _, _ in pieces for name in (column.record, column.shard)]
        self._files.fetch_ahead(names)
        for column in columns:
            for shard, begin, number in pieces:
                self.shard(column, shard).fetch_ahead(begin, number)
        for column in columns:
            self.check(column, first, count)

    def shard(self, column: StoredColumn, number: int) -> Shard:
        """A shard, mapped at its first use; raises UserError if its file or record is missing or invalid."""
        opened = self._shards.get((column, number))
        if opened is None:
            record = checked_record(self._files.path(column.record(number)), self.manifest, column, number)
            opened = Shard(self._files.path(column.shard(number)), column, record, self.manifest.block_rows)
            self._shards[column, number] = opened
        return opened

    def keep_only(self, first: int, count: int) -> None:
        """Release the shards that have none of these rows, if their files may be replaced by others."""
        if not self._files.is_persistent:
            needed = {shard for shard, _, _ in self._pieces(first, count)}
            self._shards = {key: shard for key, shard in self._shards.items() if key[1] in needed}

    def _pieces(self, first: int, count: int) -> list[tuple[int, int, int]]:
        """Split a row range by shard into (shard, first row in the shard, number of rows)."""
        assert first >= 0 and first + count <= self.rows, f"rows {first} to {first + count} of {self.rows}"
        size, pieces = self.manifest.shard_rows, []
        while count > 0:
            shard, begin = divmod(first, size)
            number = min(count, size - begin)
            pieces.append((shard, begin, number))
            first, count = first + number, count - number
        return pieces
