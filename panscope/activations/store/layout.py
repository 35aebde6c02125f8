"""The format of a shard: a safetensors file with one tensor, whose data is page-aligned.

A store has one column per site, such as `sites/L03.resid_post`, and the column `tokens` with token id, document id and
position of every row, shared by all sites. Shard k of every column has the same rows. The header is padded with blanks,
which the format allows, so that rows can be mapped page by page. It is determined by the shape, so a reader can verify
every byte of it.

Shape letters: N rows of a shard, D width of a column.
"""

import json
from dataclasses import dataclass

import torch

from panscope.types import Site, UserError

PAGE = 4096
"""Size of the header in bytes, including its length field; the data begins there."""
TOKENS = "tokens"
TOKEN_FIELDS = 3
"""Number of token fields: token id, document id, position."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


@dataclass(frozen=True)
class StoredColumn:
    """One column of a store, divided into shards."""

    folder: str
    """The folder of its files, relative to the store."""
    width: int
    """D."""
    dtype: torch.dtype

    @classmethod
    def of_site(cls, site: Site, width: int, dtype: torch.dtype) -> "StoredColumn":
        """The column of one site's activations."""
        return cls(f"sites/{site}", width, dtype)

    @classmethod
    def of_tokens(cls) -> "StoredColumn":
        """The column of token id, document id and position of every row."""
        return cls(TOKENS, TOKEN_FIELDS, torch.int64)

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return self.width * self.dtype.itemsize

    def shard(self, number: int) -> str:
        """The name of a shard's file."""
        return f"{self.folder}/{number:05d}.safetensors"

    def record(self, number: int) -> str:
        """The name of a shard's record file."""
        return f"{self.folder}/{number:05d}.json"

    def header(self, rows: int) -> bytes:
        """The header of a shard of `rows` rows: its first PAGE bytes."""
        tensor = {"dtype": _NAMES[self.dtype], "shape": [rows, self.width], "data_offsets": [0, rows * self.row_bytes]}
        text = json.dumps({"rows": tensor}, separators=(",", ":")).encode()
        length = PAGE - 8
        return length.to_bytes(8, "little") + text.ljust(length)


@dataclass(frozen=True)
class Cut:
    """The division of rows into shards, and of shards into blocks with one checksum each."""

    shard_rows: int
    """A multiple of `block_rows`."""
    block_rows: int

    def shards(self, rows: int) -> int:
        """Number of shards of a store of `rows` rows."""
        return -(-rows // self.shard_rows)

    def rows_of(self, shard: int, rows: int) -> int:
        """Number of rows in a shard of a store of `rows` rows."""
        return max(0, min(self.shard_rows, rows - shard * self.shard_rows))


def cut_for(shard_bytes: int, block_rows: int, widest: int) -> Cut:
    """Shards of at most `shard_bytes` bytes, if a row of the widest column has `widest` bytes.

    Raises UserError if one block of rows is larger than that.
    """
    blocks = shard_bytes // (block_rows * widest)
    if not blocks:
        raise UserError(
            f"shard_gib gives shards of {shard_bytes} bytes, too few for one block of {block_rows} rows of {widest} "
            f"bytes: set it to at least {block_rows * widest / 2**30:.3g}"
        )
    return Cut(blocks * block_rows, block_rows)
