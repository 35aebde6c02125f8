"""Which sites a coder reads and which it predicts: independent of its architecture.

`sae` reads and predicts one site; `transcoder` reads one and predicts another, such as mlp_in -> mlp_out
(Dunefsky et al. 2024; Llama Scope section 3.2). `multilayer` is one coder for several sites of equal width, each row of
each site a row of its own (Multi-Layer SAE). `crosscoder` reads and predicts several sites at once, concatenated, so
that they share one code (Lindsey et al. 2024).

Shape letters: B rows of a batch, S sites, D width of what is read, E width of what is predicted; a multilayer coder's
rows are S B, site after site.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from pydantic import BeforeValidator, PlainSerializer, model_validator
from torch import Tensor

from panscope.coders.base import Coder
from panscope.coders.inference import InferenceBackend, Reference
from panscope.coders.normaliser import Normaliser, RowStats
from panscope.config import Config
from panscope.types import ActivationBatch, Latents, Site

SiteField = Annotated[
    Site, BeforeValidator(lambda value: Site.parse(value) if isinstance(value, str) else value), PlainSerializer(str)
]
"""A Site in a configuration, written as L03.mlp_out."""


@dataclass(frozen=True)
class WiringKind:
    """What is known of a wiring: how x and y are gathered, and how people and files name it."""

    singular: str
    plural: str
    default_sites: str
    """The `sites` of a suite file where it names none."""
    prefix: str = ""
    """What the names of its coders have before the letters of their sites."""
    predicts_other: bool = False
    """Whether it predicts another site than it reads."""
    has_several_sites: bool = False
    stacks_rows: bool = False
    """Whether the rows of its sites are rows of one coder, site after site."""
    joins_columns: bool = False
    """Whether the rows of its sites are concatenated, so that they share one code."""


WIRINGS = {
    "sae": WiringKind("sparse autoencoder", "sparse autoencoders", "resid_post"),
    "transcoder": WiringKind(
        "transcoder", "transcoders", "mlp_in_no_gain -> mlp_out", prefix="TC", predicts_other=True
    ),
    "multilayer": WiringKind(
        "sparse autoencoder of several layers",
        "sparse autoencoders of several layers",
        "resid_post",
        has_several_sites=True,
        stacks_rows=True,
    ),
    "crosscoder": WiringKind(
        "crosscoder", "crosscoders", "resid_post", prefix="CC", has_several_sites=True, joins_columns=True
    ),
}
"""Every wiring by its name in files; one more is a line here, and a new way to gather rows a branch of `Wiring`."""
UNIT = Normaliser(kind="none", scale_in=1, scale_out=1)
"""Leaves rows as they are."""


class Wiring(Config):
    """The sites of one coder."""

    wiring: str
    """Its name in `WIRINGS`."""
    reads: tuple[SiteField, ...]
    """The sites whose rows it reads."""
    predicts: tuple[SiteField, ...]
    """The sites whose rows it predicts."""

    @model_validator(mode="after")
    def _sites_fit(self) -> Self:
        if self.wiring not in WIRINGS:
            raise ValueError(f"wiring is {self.wiring!r}: use one of {', '.join(WIRINGS)}")
        reads, predicts = " ".join(map(str, self.reads)), " ".join(map(str, self.predicts))
        if (not self.kind.predicts_other) != (self.reads == self.predicts):
            wanted = "another site than it reads" if self.kind.predicts_other else "the site it reads"
            raise ValueError(f"predicts is {predicts}, but wiring {self.wiring!r} predicts {wanted}, {reads}")
        fits = len(self.reads) > 1 if self.kind.has_several_sites else len(self.reads) == 1
        if not fits or len(self.predicts) != len(self.reads):
            wanted = "several sites" if self.kind.has_several_sites else "one site"
            raise ValueError(f"reads is {reads}, but wiring {self.wiring!r} takes {wanted}")
        if len(set(self.reads)) != len(self.reads):
            raise ValueError(f"reads is {reads}: name each site once")
        return self

    @property
    def kind(self) -> WiringKind:
        """What is known of the wiring."""
        return WIRINGS[self.wiring]

    @property
    def stacks(self) -> int:
        """How many rows of the coder one token gives: S of a multilayer coder, else 1."""
        return len(self.reads) if self.kind.stacks_rows else 1

    def site_width(self, columns: int) -> int:
        """The width of each site's rows, where the coder's rows have so many columns."""
        return columns // len(self.reads) if self.kind.joins_columns else columns

    def columns(self, sites: Sequence[Site], width: Callable[[Site], int]) -> int:
        """The columns of the coder's rows at `sites`, which are those it reads or predicts; `width` is that of one."""
        return sum(map(width, sites)) if self.kind.joins_columns else width(sites[0])

    def sites(self) -> set[Site]:
        """Every site whose rows it needs."""
        return {*self.reads, *self.predicts}

    def rows(self, batch: ActivationBatch) -> tuple[Tensor, Tensor]:
        """x [B, D] and y [B, E] of a batch; [S B, D] twice for a multilayer coder."""
        x = self.gather(batch.rows)
        return x, self._joined(batch.rows, self.predicts) if self.kind.predicts_other else x

    def gather(self, rows: dict[Site, Tensor]) -> Tensor:
        """What the coder reads, from the rows of each site."""
        return self._joined(rows, self.reads)

    def _joined(self, rows: dict[Site, Tensor], sites: tuple[Site, ...]) -> Tensor:
        pieces = [rows[site] for site in sites]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=0 if self.kind.stacks_rows else 1)

    def split(self, y_hat: Tensor, widths: list[int]) -> list[Tensor]:
        """The reconstruction [., E] taken apart: one [B, width] for each predicted site; `widths` are theirs."""
        if self.kind.stacks_rows:
            return list(y_hat.chunk(self.stacks, dim=0))
        return list(y_hat.split(widths, dim=1))

    def codes(self, latents: Latents) -> list[Latents]:
        """The codes behind each predicted site's rows: those of its own rows, or for a crosscoder the shared ones."""
        if not self.kind.stacks_rows:
            return [latents] * len(self.predicts)
        rows = len(latents) // self.stacks
        return [latents.select(slice(n * rows, (n + 1) * rows)) for n in range(self.stacks)]


class WiredCoder:
    """A finished coder at its sites, working on rows of raw activations: what evaluation and loaded coders share.

    Scalar normalisers are folded into the weights; one that differs from row to row cannot be and is applied here.
    Everything is computed in the coder's own precision.
    """

    def __init__(
        self, wiring: Wiring, coder: Coder, normaliser: Normaliser = UNIT, backend: InferenceBackend | None = None
    ) -> None:
        """`backend` computes codes and reconstructions; the coder's own definition if it is left out."""
        self.wiring = wiring
        self.coder = coder
        self.normaliser = normaliser
        self.backend: InferenceBackend = backend or Reference()

    @property
    def needs_rows(self) -> bool:
        """Whether decoding takes the rows too: with an affine skip, or a normaliser that differs from row to row."""
        return self.coder.config.skip or self.normaliser.left_after_folding().kind != "none"

    def encode(self, x: Tensor) -> Latents:
        """The codes of raw rows x [B, D]."""
        return self.backend.encode(self.coder, self._normalised(x)[0])

    def decode(self, latents: Latents, x: Tensor | None) -> Tensor:
        """Raw rows [B, E] from the codes of the raw rows x [B, D]; x may be None unless `needs_rows`."""
        inside, stats = (None, None) if x is None else self._normalised(x)
        base = self.coder.b_dec if inside is None else self.coder.base(inside)
        return self._raw(self.backend.decode(self.coder, latents) + base, stats)

    def raw_difference(self, difference: Tensor, x: Tensor) -> Tensor:
        """A difference [B, E] between two reconstructions of rows x [B, D] in the coder's space, in raw units."""
        _, stats = self._normalised(x)
        return self._raw(difference, None if stats is None else replace(stats, centre=torch.zeros_like(stats.centre)))

    def _normalised(self, x: Tensor) -> tuple[Tensor, RowStats | None]:
        x = x.to(self.coder.W_enc.dtype)
        return (x, None) if self.normaliser == UNIT else self.normaliser.input(x)

    def _raw(self, y_hat: Tensor, stats: RowStats | None) -> Tensor:
        return y_hat if self.normaliser == UNIT else self.normaliser.undo(y_hat, stats)
