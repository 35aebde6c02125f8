"""The nouns that every floor shares: where activations are read, what a batch of them holds, what a code is.

Shape letters: N sequences, T tokens a sequence, B rows (one row is one token at one site), D width of a site,
F latents of a coder, K stored codes a row.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SITE_KINDS = ("resid_post", "attn_z", "attn_out", "mlp_out", "mlp_in", "mlp_in_no_gain")
"""The kinds of site, in the field's (TransformerLens) vocabulary; `docs/architecture.md` says what each one is."""

_SITE_PATTERN = re.compile(r"L(\d+)\.(\w+)")


class UserError(ValueError):
    """A mistake of the user: one sentence that names the field, the value, what was expected and what to do."""


class NonFiniteError(UserError):
    """NaN or infinity where numbers were expected."""


@dataclass(frozen=True, order=True)
class Site:
    """One place of the language model where activations are read: `layer` counts from 0, the first block."""

    layer: int
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in SITE_KINDS:
            raise UserError(f"site kind {self.kind!r} is unknown: use one of {', '.join(SITE_KINDS)}")
        if self.layer < 0:
            raise UserError(f"layer {self.layer} of site {self.kind!r} is negative: layers count from 0")

    def __str__(self) -> str:
        return f"L{self.layer:02d}.{self.kind}"

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read back what `str(site)` wrote, such as `L03.mlp_out`; raises UserError on anything else."""
        match = _SITE_PATTERN.fullmatch(text)
        if match is None:
            raise UserError(f"site {text!r} is not understood: write it as L03.mlp_out")
        return cls(int(match[1]), match[2])


class Tokenizer(Protocol):
    """What the text pipeline asks of a language model's tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """The token that opens a document, or None where the model has none."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document, or None where the model has none."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Every id that is not text: BOS, EOS, padding and the like."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with no special token added."""
        ...


@dataclass(frozen=True)
class TokenBatch:
    """N sequences of T tokens, padded on the right."""

    token_ids: Tensor
    """[N, T] int64."""
    attention_mask: Tensor
    """[N, T] bool: True where a token is real, False on padding."""
    content: Tensor
    """[N, T] bool: True where the token is text: neither BOS, EOS, another special token nor padding."""
    document_ids: Tensor
    """[N, T] int64, the document's number in its source; -1 on padding."""
    positions: Tensor
    """[N, T] int64, the token's place in its sequence, from 0."""


@dataclass(frozen=True)
class ActivationBatch:
    """Rows of several sites, aligned: row b of every site is the same token of the same document."""

    rows: dict[Site, Tensor]
    """[B, D] a site."""
    token_ids: Tensor
    """[B] int64."""
    document_ids: Tensor
    """[B] int64, the document's number in its source."""
    positions: Tensor
    """[B] int64, the token's place in its sequence, from 0."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def select(self, index: Tensor | slice) -> "ActivationBatch":
        """The rows at `index`, in that order."""
        return self.map(lambda column: column[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> "ActivationBatch":
        """The same change made to every column."""
        rows = {site: change(x) for site, x in self.rows.items()}
        return ActivationBatch(rows, change(self.token_ids), change(self.document_ids), change(self.positions))

    @staticmethod
    def concatenate(batches: "list[ActivationBatch]") -> "ActivationBatch":
        """All rows of `batches`, in order; the batches hold the same sites."""
        sites = batches[0].rows
        return ActivationBatch(
            {site: torch.cat([batch.rows[site] for batch in batches]) for site in sites},
            torch.cat([batch.token_ids for batch in batches]),
            torch.cat([batch.document_ids for batch in batches]),
            torch.cat([batch.positions for batch in batches]),
        )


@dataclass(frozen=True)
class Latents:
    """The codes of B rows: dense (`indices` is None, values [B, F]) or sparse (K places a row, unused ones hold 0)."""

    values: Tensor
    """[B, F] or [B, K], never negative; a latent is active where its value is above 0."""
    width: int
    """F."""
    indices: Tensor | None = None
    """[B, K] int64, or None for dense codes."""

    def dense(self) -> Tensor:
        """[B, F]."""
        if self.indices is None:
            return self.values
        codes = self.values.new_zeros(len(self.values), self.width)
        return codes.scatter_add(1, self.indices, self.values)

    def select(self, index: Tensor | slice) -> "Latents":
        """The codes of the rows at `index`."""
        return Latents(self.values[index], self.width, None if self.indices is None else self.indices[index])

    def l0(self) -> Tensor:
        """[B] how many latents are active: values > 0."""
        return (self.values > 0).sum(dim=1)

    def l1(self) -> Tensor:
        """[B] sum of the values."""
        return self.values.sum(dim=1)

    def firings(self, above: float = 0.0) -> Tensor:
        """[F] int64: how many of the B rows each latent is active on, with a value over `above`."""
        active = self.values > above
        if self.indices is None:
            return active.sum(dim=0)
        counts = torch.zeros(self.width, dtype=torch.int64, device=self.values.device)
        return counts.scatter_add(0, self.indices.flatten(), active.flatten().long())
