"""The types that every package shares: sites, batches of tokens and activations, codes.

Shape letters: N sequences, T tokens a sequence, B rows (one row is one token at one site), D width of a site,
F latents of a coder, K stored codes a row.
"""

import re
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from panscope.site_kinds import KINDS

SITE_KINDS = tuple(KINDS)
"""The names of the kinds of site; `docs/architecture.md` says what each one is."""

_FRACTION = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")
_SITE_PATTERN = re.compile(r"L(\d+)\.(\w+)")


class UserError(ValueError):
    """A mistake of the user: one sentence that names the field, the value, what was expected and what to do."""


class NonFiniteError(UserError):
    """NaN or infinity where numbers were expected."""


class StoppedWaiting(Exception):
    """Waiting for rows was stopped on request; no row was taken, so the training state can be saved."""


class Once:
    """Things made at the first request and kept, also when several threads ask."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made under `key`, or make() now."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]


@dataclass(frozen=True, order=True)
class Site:
    """One place of the language model where activations are read: `layer` counts from 0, the first block."""

    layer: int
    """Of the block, from 0."""
    kind: str
    """One of `panscope.site_kinds.KINDS`, such as `resid_post`."""

    def __post_init__(self) -> None:
        if self.kind not in SITE_KINDS:
            before = "resid_pre is the resid_post of the layer before; " if self.kind == "resid_pre" else ""
            raise UserError(f"site kind {self.kind!r} is unknown: {before}use one of {', '.join(SITE_KINDS)}")
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


def read_fraction(text: str, what: str) -> tuple[int, int]:
    """`2/8`, the second of eight, as (2, 8); raises UserError, naming `what`, for anything else."""
    match = _FRACTION.fullmatch(text)
    if match is not None and int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise UserError(f"{what} is {text!r}: write the second of eight as 2/8")


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

    def encode_with_ends(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """The same, and where in the text each token ends: the number of characters up to there, never falling."""
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
    """The codes of B rows: every code of a row, K codes of each row, or N codes in total.

    Dense: values [B, F] alone. Even: values and indices [B, K]. Ragged: values and indices [N] with `starts` [B + 1],
    those of row b being `starts[b]` to `starts[b + 1]` - 1. Places that are stored and not used hold 0.
    """

    values: Tensor
    """[B, F], [B, K] or [N], never negative; a latent is active where its value is above 0."""
    width: int
    """F."""
    indices: Tensor | None = None
    """int64, shaped as `values`; None for dense codes."""
    starts: Tensor | None = None
    """[B + 1] int64 of ragged codes, else None."""

    def __len__(self) -> int:
        return len(self.values) if self.starts is None else len(self.starts) - 1

    def with_values(self, values: Tensor) -> "Latents":
        """Other values at the same places."""
        return Latents(values, self.width, self.indices, self.starts)

    def ragged(self) -> "Latents":
        """Even codes as ragged ones; ragged ones as they are."""
        assert self.indices is not None
        if self.starts is not None:
            return self
        rows, k = self.indices.shape
        starts = torch.arange(0, rows * k + 1, max(1, k), device=self.values.device)[: rows + 1]
        return Latents(self.values.flatten(), self.width, self.indices.flatten(), starts)

    def dense(self) -> Tensor:
        """[B, F]."""
        if self.indices is None:
            return self.values
        codes = self.values.new_zeros(len(self), self.width)
        if self.starts is None:
            return codes.scatter_add(1, self.indices, self.values)
        places = self.rows() * self.width + self.indices
        return codes.flatten().index_add(0, places, self.values).view_as(codes)

    def rows(self) -> Tensor:
        """[N] the row of each place of ragged codes."""
        assert self.starts is not None
        every = torch.arange(len(self), device=self.starts.device)
        return every.repeat_interleave(self.starts.diff(), output_size=len(self.values))

    def each(self, parameter: Tensor) -> Tensor:
        """`parameter` [F] as it meets the values: [F] beside dense ones, else one number for each place."""
        return parameter if self.indices is None else parameter[self.indices]

    def over_latents(self, values: Tensor) -> Tensor:
        """[B] the sum within each row of something shaped as the values."""
        if self.starts is None:
            return values.sum(dim=1)
        return values.new_zeros(len(self)).index_add(0, self.rows(), values)

    def over_rows(self, values: Tensor) -> Tensor:
        """[F] the sum for each latent of something shaped as the values."""
        if self.indices is None:
            return values.sum(dim=0)
        return values.new_zeros(self.width).index_add(0, self.indices.flatten(), values.flatten())

    def over_groups(self, values: Tensor, groups: Tensor, n: int) -> Tensor:
        """[n, F] the sum for each latent over the rows of each group; `groups` [B] int64 has every row's, from 0."""
        if self.indices is None:
            return values.new_zeros(n, self.width).index_add(0, groups, values)
        of_places = groups[:, None].expand_as(self.indices) if self.starts is None else groups[self.rows()]
        places = (of_places * self.width + self.indices).flatten()
        return values.new_zeros(n * self.width).index_add(0, places, values.flatten()).view(n, self.width)

    def largest(self) -> Tensor:
        """[F] the largest value of each latent, 0 where it is nowhere active."""
        if self.indices is None:
            return torch.cat([self.values, self.values.new_zeros(1, self.width)]).amax(dim=0)
        none = self.values.new_zeros(self.width)
        return none.scatter_reduce(0, self.indices.flatten(), self.values.flatten(), "amax")

    def totals(self) -> Tensor:
        """[F] float64 the sum of each latent's values."""
        if self.indices is None:
            return self.values.sum(dim=0, dtype=torch.float64)
        return self.over_rows(self.values.double())

    def select(self, index: Tensor | slice) -> "Latents":
        """The codes of the rows at `index`."""
        if self.starts is not None:
            return self._select_ragged(torch.arange(len(self), device=self.values.device)[index])
        return Latents(self.values[index], self.width, None if self.indices is None else self.indices[index])

    def _select_ragged(self, rows: Tensor) -> "Latents":
        """Those of rows [M], given by their numbers."""
        assert self.starts is not None and self.indices is not None
        lengths = self.starts.diff()[rows]
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        total = int(starts[-1])
        shift = (self.starts[rows] - starts[:-1]).repeat_interleave(lengths, output_size=total)
        places = torch.arange(total, device=self.values.device) + shift
        return Latents(self.values[places], self.width, self.indices[places], starts)

    def l0(self) -> Tensor:
        """[B] how many latents are active: values > 0."""
        return self.over_latents((self.values > 0).long())

    def l1(self, dtype: torch.dtype | None = None) -> Tensor:
        """[B] sum of the values, taken in `dtype` or the values' own."""
        if self.indices is None:
            return self.values.sum(dim=1, dtype=dtype)
        return self.over_latents(self.values if dtype is None else self.values.to(dtype))

    def firings(self, above: float = 0.0) -> Tensor:
        """[F] int64: how many of the B rows each latent is active on, with a value over `above`."""
        return self.over_rows((self.values > above).long())
