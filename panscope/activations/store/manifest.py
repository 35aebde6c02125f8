"""A store's manifest: the model, text, order and sites of its rows.

The origin of the rows is fixed when a store is created, since resuming or adding sites must produce the same rows. The
number of rows and the norms of each site are known, and written, only when all rows are on disk.
"""

from typing import Any, Literal

import torch
from pydantic import Field, field_validator

from panscope.activations.norms import SiteNorms
from panscope.activations.store.layout import Cut, StoredColumn
from panscope.config import Config
from panscope.lms.identity import ModelIdentity
from panscope.types import Site, UserError

FORMAT = 2
FILE = "manifest.json"
StoredType = Literal["float32", "bfloat16"]


class Origin(Config):
    """Everything that determines the rows and their order."""

    model: str
    """Path or hub id of the language model, as given by the user."""
    revision: str | None
    """Revision of a model on the hub."""
    model_identity: ModelIdentity
    """What the model computes, which distinguishes models of the same name."""
    model_dtype: str
    """The dtype that the model computed in."""
    attention: str
    """The implementation of attention that it used."""
    text: tuple[str, ...] = ()
    """Identity of each text, which distinguishes texts of the same name; see `data/identity.py`."""
    data: dict[str, Any]
    """The `[data]` table: text, packing, context, held-out share, sequences per pass."""
    special_tokens: str
    """What became of special tokens' rows: `activations.special_tokens`."""
    seed: int
    """Fixes the order of the rows."""
    wanted_rows: int = Field(ge=1)
    """Maximum number of rows to collect; there are fewer if the text is shorter."""
    bucket_rows: int = Field(ge=1)
    """Number of rows that were shuffled together before they were written."""


class StoredSite(Config):
    """A site with all its rows, and means over the rows x."""

    width: int = Field(ge=1)
    """D."""
    mean_norm: float
    """The mean of ||x||."""
    mean_squared_norm: float
    """The mean of ||x||^2."""
    mean: tuple[float, ...]
    """[D] the mean of x."""


class Manifest(Config):
    """The contents of `manifest.json`."""

    format: int = FORMAT
    """The version of the store's files."""
    origin: Origin
    """What the rows are activations of."""
    dtype: StoredType
    """The type in which rows are stored."""
    shard_rows: int = Field(ge=1)
    """Rows of a shard."""
    block_rows: int = Field(ge=1)
    """Rows that share a checksum."""
    versions: dict[str, str]
    """Versions of the packages that wrote the store."""
    rows: int | None = None
    """Number of rows; None until all of them have been written."""
    sites: dict[str, StoredSite] = Field(default={})
    """The stored sites, with the size of their rows; empty until the first is complete."""

    @field_validator("format")
    @classmethod
    def _check_format(cls, version: int) -> int:
        if version != FORMAT:
            raise ValueError(f"a store of format {version} cannot be read by this version, which knows format {FORMAT}")
        return version

    @property
    def identity(self) -> str:
        """A hash of what determines the rows and their shards; it does not change on completion or with new sites."""
        return self.replace(rows=None, sites={}, versions={}).fingerprint()

    @property
    def cut(self) -> Cut:
        """The division of rows into shards and blocks."""
        return Cut(self.shard_rows, self.block_rows)

    def column(self, site: Site, width: int) -> StoredColumn:
        """The column of a site."""
        return StoredColumn.of_site(site, width, getattr(torch, self.dtype))

    def norms(self, site: Site) -> SiteNorms:
        """Means over all rows of a site, from which its normaliser is made."""
        stored = self.sites[str(site)]
        assert self.rows is not None
        mean = torch.tensor(stored.mean, dtype=torch.float64)
        return SiteNorms(self.rows, stored.mean_norm, stored.mean_squared_norm, mean)


def check_same(existing: Manifest, requested: Manifest, where: str) -> None:
    """Raise UserError naming the first setting in which an existing store differs from the requested one, or what
    differs in the language model."""
    if changes := existing.origin.model_identity.differences(requested.origin.model_identity):
        raise UserError(
            f"the store {where!r} holds activations of another model ({existing.origin.model}) than "
            f"{requested.origin.model!r} is now: {' and '.join(changes)}; give that model, or collect into another "
            "folder"
        )
    for name, before in _fixed(existing).items():
        now = _fixed(requested).get(name)
        if before != now:
            raise UserError(
                f"the store {where!r} was created with {name} = {before!r}, and now it is {now!r}: use the same value, "
                "or collect into another folder"
            )


def _fixed(manifest: Manifest) -> dict[str, Any]:
    """Settings that determine rows and shards by name; the locations of model and text are not among them."""
    origin = manifest.origin.model_dump(exclude={"model", "revision", "model_identity", "data"})
    data = {f"data.{name}": value for name, value in manifest.origin.data.items() if name != "text"}
    cut = {"dtype": manifest.dtype, "shard_rows": manifest.shard_rows, "block_rows": manifest.block_rows}
    return cut | origin | data
