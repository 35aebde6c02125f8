"""How the rows of one column lie in a shard: a safetensors file of one tensor, its data beginning on a page.

A store has a column a site, `sites/L03.resid_post`, and the column `tokens`: token id, document id and position of
every row, once for all sites. Shard k of every column holds the same rows. The header is padded with blanks, which the
format allows, so that rows can be mapped page by page; it follows from the shape, so a reader knows every byte of it.

Shape letters: N rows of a shard, D width of a column.
"""

import json
from dataclasses import dataclass

import torch

from panscope.types import Site, UserError

PAGE = 4096
"""Bytes of a header, its length in front included; data begins there."""
TOKENS = "tokens"
TOKEN_FIELDS = 3
"""Token id, document id, position."""
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}


@dataclass(frozen=True)
class StoredColumn:
    """One tensor of a store, cut into shards."""

    folder: str
    """Inside the store."""
    width: int
    """D."""
    dtype: torch.dtype

    @classmethod
    def of_site(cls, site: Site, width: int, dtype: torch.dtype) -> "StoredColumn":
        """The rows of one site."""
        return cls(f"sites/{site}", width, dtype)

    @classmethod
    def of_tokens(cls) -> "StoredColumn":
        """Where every row comes from."""
        return cls(TOKENS, TOKEN_FIELDS, torch.int64)

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return self.width * self.dtype.itemsize

    def shard(self, number: int) -> str:
        """The name of a shard's file."""
        return f"{self.folder}/{number:05d}.safetensors"

    def record(self, number: int) -> str:
        """The name of the file that tells of a shard."""
        return f"{self.folder}/{number:05d}.json"

    def header(self, rows: int) -> bytes:
        """The first PAGE bytes of a shard of that many rows."""
        tensor = {"dtype": _NAMES[self.dtype], "shape": [rows, self.width], "data_offsets": [0, rows * self.row_bytes]}
        text = json.dumps({"rows": tensor}, separators=(",", ":")).encode()
        length = PAGE - 8
        return length.to_bytes(8, "little") + text.ljust(length)


@dataclass(frozen=True)
class Cut:
    """How rows are cut into shards, and those into the blocks that have a checksum each."""

    shard_rows: int
    """A multiple of `block_rows`."""
    block_rows: int

    def shards(self, rows: int) -> int:
        """How many shards `rows` rows make."""
        return -(-rows // self.shard_rows)

    def rows_of(self, shard: int, rows: int) -> int:
        """How many of `rows` rows are in that shard."""
        return max(0, min(self.shard_rows, rows - shard * self.shard_rows))


def cut_for(shard_bytes: int, block_rows: int, widest: int) -> Cut:
    """Shards of at most `shard_bytes` where a row of the widest column has `widest` bytes.

    Raises UserError if not even one block of rows fits.
    """
    blocks = shard_bytes // (block_rows * widest)
    if not blocks:
        raise UserError(
            f"shard_gib gives shards of {shard_bytes} bytes, too few for one block of {block_rows} rows of {widest} "
            f"bytes: set it to at least {block_rows * widest / 2**30:.3g}"
        )
    return Cut(blocks * block_rows, block_rows)
