"""The `[activations]` table: the source of the activation rows for training, and how they are shuffled."""

from typing import Literal, Self

from pydantic import Field, model_validator

from panscope.activations.live import Special
from panscope.activations.store.windows import Slice
from panscope.config import Config

_REQUIRED_FIELDS = {"live": (), "store": ("store",), "server": ("servers",)}
"""The fields that each source requires, and that no other source accepts."""


class ActivationsConfig(Config):
    """Source and shuffling of activation rows."""

    source: Literal["live", "store", "server"] = "live"
    """`live`: the language model runs during training; `store`: rows collected by `panscope collect`;
    `server`: rows of a store, served by `panscope serve` on other machines."""
    store: str | None = None
    """For source `store`: its folder, or its address as s3://bucket/folder or gs://bucket/folder."""
    part: str = "1/1"
    """For source `store`: the slice of its rows to read, such as 2/8 for the second of eight."""
    cache: str | None = None
    """For a store with an address: the folder in which its files are cached; by default one in the user's cache."""
    cache_gib: float = Field(default=100.0, gt=0)
    """For a store with an address: the maximum size of the cache folder in GiB."""
    servers: tuple[str, ...] = ()
    """For source `server`: addresses as grpc://host:port or grpc+tls://host:port, which together have all rows."""
    certificate: str | None = None
    """For source `server` with TLS: the file of the certificate to trust; by default those of the system."""
    shuffle: Literal["buckets", "pool"] = "buckets"
    """`buckets`: fill a buffer, shuffle it and use all of it; `pool`: use half of the buffer, refill and shuffle it
    (source `live` only)."""
    special_tokens: Special = "drop"
    """`drop`: special tokens such as BOS and EOS give no rows; `zero` (legacy): rows of zeros, as in the code of the
    Multi-Layer SAE."""
    buffer_rows: int | None = Field(default=None, ge=1)
    """Number of rows shuffled together, at least one training batch; by default 1,000,000, or fewer if those would need
    more than a quarter of the memory."""
    norm_rows: int = Field(default=32_768, ge=1)
    """Number of rows on which activation norms are measured before training; a store has norms of all its rows."""

    @model_validator(mode="after")
    def _check_source_fields(self) -> Self:
        for source, names in _REQUIRED_FIELDS.items():
            for name in names:
                given, wanted = bool(getattr(self, name)), source == self.source
                if wanted and not given:
                    raise ValueError(f"activations.source is {source!r}, so activations.{name} must be set")
                if given and not wanted:
                    raise ValueError(f"activations.{name} is only for source {source!r}, but source is {self.source!r}")
        if self.shuffle == "pool" and self.source != "live":
            raise ValueError(
                f"activations.shuffle 'pool' is only for source 'live', not {self.source!r}: set it to buckets"
            )
        Slice.parse(self.part)
        return self
