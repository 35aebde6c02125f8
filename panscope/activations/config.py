"""The `[activations]` table: where the rows that coders learn from come from, and how they are mixed."""

from typing import Literal, Self

from pydantic import Field, model_validator

from panscope.activations.live import Special
from panscope.activations.store.windows import Slice
from panscope.config import Config

_OWN = {"live": (), "store": ("store",), "server": ("servers",)}
"""What each source must be told."""


class ActivationsConfig(Config):
    """Where rows come from and how they are shuffled."""

    source: Literal["live", "store", "server"] = "live"
    """`live`: the language model runs while the coders are trained; `store`: rows that `panscope collect` stored;
    `server`: the same, from machines on which `panscope serve` runs."""
    store: str | None = None
    """Of source `store`: its folder, or its address as s3://bucket/folder or gs://bucket/folder."""
    part: str = "1/1"
    """Of source `store`: the slice of its rows to read, as 2/8 for the second of eight."""
    cache: str | None = None
    """Of a store with an address: the folder for what is fetched; left out, one in the user's cache."""
    cache_gib: float = Field(default=100.0, gt=0)
    """Of a store with an address: what that folder may hold."""
    servers: tuple[str, ...] = ()
    """Of source `server`: addresses as grpc://host:port, or grpc+tls://host:port; together they have all the rows."""
    certificate: str | None = None
    """Of source `server` with TLS: the file of the certificate to trust; left out, those of the system."""
    shuffle: Literal["buckets", "pool"] = "buckets"
    """`buckets`: gather, shuffle, hand out all; `pool`: hand out half, fill up, shuffle (source `live` only)."""
    special_tokens: Special = "drop"
    """`drop`: BOS, EOS and the like give no rows; legacy, `zero`: rows of zeros, as the Multi-Layer SAE's code."""
    buffer_rows: int | None = Field(default=None, ge=1)
    """Rows held and shuffled together, at least one training batch; left out, the plan takes 1,000,000, or fewer where
    those would need more than a quarter of the memory."""
    norm_rows: int = Field(default=32_768, ge=1)
    """Rows on which the size of the activations is measured before training; a store has them measured on all rows."""

    @model_validator(mode="after")
    def _is_of_one_source(self) -> Self:
        for source, names in _OWN.items():
            for name in names:
                given, wanted = bool(getattr(self, name)), source == self.source
                if wanted and not given:
                    raise ValueError(f"activations.source is {source!r}, so activations.{name} must be set")
                if given and not wanted:
                    raise ValueError(f"activations.{name} is of source {source!r}, but source is {self.source!r}")
        if self.shuffle == "pool" and self.source != "live":
            raise ValueError(f"activations.shuffle 'pool' is of source 'live', not {self.source!r}: set it to buckets")
        Slice.parse(self.part)
        return self
