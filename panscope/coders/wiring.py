"""Which sites a coder reads and which it predicts: independent of its architecture.

`sae` reads and predicts one site; `transcoder` reads one and predicts another, such as mlp_in -> mlp_out
(Dunefsky et al. 2024; Llama Scope section 3.2).

Shape letters: B rows, D width of what is read, E width of what is predicted.
"""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, PlainSerializer, model_validator
from torch import Tensor

from panscope.coders.base import Coder
from panscope.config import Config
from panscope.types import ActivationBatch, Latents, Site

SiteField = Annotated[
    Site, BeforeValidator(lambda value: Site.parse(value) if isinstance(value, str) else value), PlainSerializer(str)
]
"""A Site in a configuration, written as L03.mlp_out."""


class Wiring(Config):
    """The sites of one coder."""

    wiring: Literal["sae", "transcoder"]
    reads: SiteField
    predicts: SiteField

    @model_validator(mode="after")
    def _sites_fit(self) -> Self:
        if (self.wiring == "sae") != (self.reads == self.predicts):
            wanted = "the site it reads" if self.wiring == "sae" else "another site than it reads"
            raise ValueError(f"predicts is {self.predicts}, but wiring {self.wiring!r} predicts {wanted}, {self.reads}")
        return self

    def sites(self) -> set[Site]:
        """Every site whose rows it needs."""
        return {self.reads, self.predicts}

    def rows(self, batch: ActivationBatch) -> tuple[Tensor, Tensor]:
        """x [B, D] and y [B, E] of a batch."""
        return batch.rows[self.reads], batch.rows[self.predicts]


class WiredCoder:
    """A finished coder at its sites, working on raw activations: what evaluation and analysis use."""

    def __init__(self, wiring: Wiring, coder: Coder) -> None:
        self.wiring = wiring
        self.coder = coder

    def encode(self, x: Tensor) -> Latents:
        """The codes of raw rows x [B, D], computed in the coder's own precision."""
        return self.coder.encode(x.to(self.coder.W_enc.dtype))

    def decode(self, latents: Latents) -> Tensor:
        """Raw rows [B, E]."""
        return self.coder.decode(latents)
