"""What a store says of itself: which rows it holds, of which model and text, in which order, and of which sites.

The first part is fixed when a store is begun: going on, or adding sites, must give the very same rows. What is known
only at the end, the number of rows and the norms of each site, is written when everything is on disk.
"""

from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from panscope.activations.norms import SiteNorms
from panscope.activations.store.layout import Cut, StoredColumn
from panscope.config import Config
from panscope.types import Site, UserError

FORMAT = 1
FILE = "manifest.json"
StoredType = Literal["float32", "bfloat16"]


class Origin(Config):
    """Everything that the rows and their order follow from."""

    model: str
    """Path or hub id of the language model, as it was given."""
    revision: str | None
    """Of a hub id."""
    weights: str
    """A hash of the model's weights, and the next of its tokenizer: what tells another model under the same name."""
    tokenizer: str
    model_dtype: str
    attention: str
    text: tuple[str, ...] = ()
    """What tells the text from another one under the same name, see `data/identity.py`."""
    data: dict[str, Any]
    """The `[data]` table: text, packing, context, held-out share, sequences a pass."""
    special_tokens: str
    seed: int
    wanted_rows: int = Field(ge=1)
    """At most so many rows are collected; fewer where the text ends before."""
    bucket_rows: int = Field(ge=1)
    """Rows that were shuffled together before they were written."""


class StoredSite(Config):
    """One site of which all rows are there."""

    width: int = Field(ge=1)
    mean_norm: float
    mean_squared_norm: float
    mean: tuple[float, ...]


class Manifest(Config):
    """`manifest.json`."""

    format: int = FORMAT
    origin: Origin
    dtype: StoredType
    shard_rows: int = Field(ge=1)
    block_rows: int = Field(ge=1)
    versions: dict[str, str]
    """Of what wrote it."""
    rows: int | None = None
    """None until all of them have been written."""
    sites: dict[str, StoredSite] = Field(default={})

    @field_validator("format")
    @classmethod
    def _known(cls, found: int) -> int:
        if found != FORMAT:
            raise ValueError(f"a store of format {found} cannot be read by this version, which knows format {FORMAT}")
        return found

    @property
    def identity(self) -> str:
        """A hash of what the rows and their cut follow from: the same from its begin on and with sites added."""
        return self.replace(rows=None, sites={}, versions={}).fingerprint()

    @property
    def cut(self) -> Cut:
        """Into shards and blocks."""
        return Cut(self.shard_rows, self.block_rows)

    def column(self, site: Site, width: int) -> StoredColumn:
        """Where rows of a site are."""
        return StoredColumn.of_site(site, width, getattr(torch, self.dtype))

    def norms(self, site: Site) -> SiteNorms:
        """What normalisers are made from, over all rows."""
        stored = self.sites[str(site)]
        assert self.rows is not None
        mean = torch.tensor(stored.mean, dtype=torch.float64)
        return SiteNorms(self.rows, stored.mean_norm, stored.mean_squared_norm, mean)


def check_same(begun: Manifest, now: Manifest, where: str) -> None:
    """Raise UserError naming the first thing in which a store that was begun is not what is asked for now."""
    for name, before in _fixed(begun).items():
        asked = _fixed(now).get(name)
        if before != asked:
            raise UserError(
                f"the store {where!r} was begun with {name} = {before!r}, and now it is {asked!r}: give the same, or "
                "collect into another folder"
            )


def _fixed(manifest: Manifest) -> dict[str, Any]:
    """What rows and their cut follow from; where model and text lie is none of it."""
    origin = manifest.origin.model_dump(exclude={"model", "revision", "data"})
    data = {f"data.{name}": value for name, value in manifest.origin.data.items() if name != "text"}
    cut = {"dtype": manifest.dtype, "shard_rows": manifest.shard_rows, "block_rows": manifest.block_rows}
    return cut | origin | data
