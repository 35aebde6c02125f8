"""The codes of a tensor of rows with any leading shape: `Latents` that keep the leading shape of their rows.

Shape letters: ... the leading shape, B its rows in order, F latents, K codes per row, N entries in total, S sequences,
T tokens per sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from panscope.types import Latents, UserError


@dataclass(frozen=True, repr=False)
class Codes(Latents):
    """Codes whose B rows are those of a tensor [..., D], in order; values are in the units of the coder's codes.

    `tensor()` is the dense tensor. For `values`, `indices` and `starts` see `Latents`: TopK codes, and all codes from
    sparse kernels, store active entries only; others store every latent of every row.
    """

    leading: tuple[int, ...] = ()
    """The shape before the last dimension; its product is B."""

    def __repr__(self) -> str:
        return f"Codes({list(self.shape)}, {int((self.values != 0).sum()):,} active entries)"

    @classmethod
    def shaped(cls, latents: Latents, leading: Sequence[int]) -> Self:
        """`latents` of B rows with a leading shape."""
        return cls(latents.values, latents.width, latents.indices, latents.starts, tuple(leading))

    @classmethod
    def dense_of(cls, tensor: Tensor) -> Self:
        """The codes of a tensor [..., F]."""
        width = tensor.shape[-1]
        return cls(tensor.reshape(-1, width), width, None, None, tuple(tensor.shape[:-1]))

    @property
    def shape(self) -> torch.Size:
        """The shape of `tensor()`: [..., F]."""
        return torch.Size((*self.leading, self.width))

    @classmethod
    def of_columns(cls, values: Tensor, latents: Tensor, width: int) -> Self:
        """Codes from values [B, n] of distinct latents [n]; zeros are omitted unless the values require gradients."""
        used = torch.ones_like(values, dtype=torch.bool) if values.requires_grad else values != 0
        starts = torch.nn.functional.pad(used.sum(dim=1).cumsum(0), (1, 0))
        return cls(values[used], width, latents.expand_as(values)[used], starts, tuple(values.shape[:1]))

    def with_values(self, values: Tensor) -> "Codes":
        """The same entries with other values."""
        return Codes(values, self.width, self.indices, self.starts, self.leading)

    def tensor(self) -> Tensor:
        """[..., F] every latent of every row, 0 where it is not active."""
        return self.dense().view(*self.leading, self.width)

    def of(self, latent: int) -> Tensor:
        """[...] the activation of one latent; raises UserError if the latent does not exist."""
        if not 0 <= latent < self.width:
            raise UserError(f"latent {latent} does not exist: the codes are of {self.width} latents, counted from 0")
        return self.columns(torch.tensor([latent], device=self.values.device)).view(self.leading)

    def columns(self, latents: Tensor) -> Tensor:
        """[B, n] the activations of distinct latents [n], differentiable with respect to the values."""
        if self.indices is None:
            return self.values[:, latents]
        column = torch.full((self.width,), len(latents), device=latents.device)  # the last is for all other latents
        column[latents] = torch.arange(len(latents), device=latents.device)
        rows = self.rows() if self.starts is not None else torch.arange(len(self), device=latents.device)[:, None]
        position = rows * (len(latents) + 1) + column[self.indices]
        sums = self.values.new_zeros(len(self) * (len(latents) + 1))
        return sums.index_add(0, position.flatten(), self.values.flatten()).view(len(self), len(latents) + 1)[:, :-1]

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """The active entries, ordered by row: their rows [N], latents [N] and values [N]."""
        if self.indices is None:
            rows, latents = self.values.nonzero(as_tuple=True)
            return rows, latents, self.values[rows, latents]
        flat = self.ragged()
        used = flat.values != 0
        assert flat.indices is not None
        return flat.rows()[used], flat.indices[used], flat.values[used]

    def first_tokens(self, count: int) -> "Codes":
        """The codes of the first `count` tokens of each sequence, from codes [S, T]."""
        sequences, tokens = self.leading
        if count == tokens:
            return self
        rows = torch.arange(sequences * tokens, device=self.values.device).view(sequences, tokens)[:, :count].flatten()
        if self.starts is None:
            return Codes.shaped(self.select(rows), (sequences, count))
        number = torch.full((sequences * tokens,), -1, device=rows.device)
        number[rows] = torch.arange(len(rows), device=rows.device)
        own, latents, values = self.entries()
        kept = number[own] >= 0
        return _ragged(number[own][kept], latents[kept], values[kept], self.width, (sequences, count))


def concatenated(pieces: Sequence[Codes]) -> Codes:
    """Codes [S, T] of successive forward passes, concatenated over tokens: [S, sum of T]."""
    if len(pieces) == 1:
        return pieces[0]
    sequences, total = pieces[0].leading[0], sum(piece.leading[1] for piece in pieces)
    layouts = {(piece.starts is None, piece.values.shape[1:]) for piece in pieces}
    if len(layouts) == 1 and pieces[0].starts is None:
        values = torch.cat([piece.values.unflatten(0, piece.leading) for piece in pieces], dim=1)
        indices = None
        if pieces[0].indices is not None:
            indices = torch.cat([_even_indices(piece).unflatten(0, piece.leading) for piece in pieces], dim=1)
            indices = indices.flatten(0, 1)
        return Codes(values.flatten(0, 1), pieces[0].width, indices, None, (sequences, total))
    rows, latents, values, before = [], [], [], 0
    for piece in pieces:
        own, latent, value = piece.entries()
        tokens = piece.leading[1]
        rows.append(own // tokens * total + own % tokens + before)
        latents.append(latent)
        values.append(value)
        before += tokens
    return _ragged(torch.cat(rows), torch.cat(latents), torch.cat(values), pieces[0].width, (sequences, total))


def stacked(pieces: Sequence[Codes]) -> Codes:
    """Codes [S, T] of several sites, stacked: [sites, S, T]."""
    leading = (len(pieces), *pieces[0].leading)
    layouts = {(piece.indices is None, piece.starts is None, piece.values.shape[1:]) for piece in pieces}
    if len(layouts) == 1 and pieces[0].starts is None:
        values = torch.cat([piece.values for piece in pieces])
        indices = None if pieces[0].indices is None else torch.cat([_even_indices(piece) for piece in pieces])
        return Codes(values, pieces[0].width, indices, None, leading)
    found, first = [], 0
    for piece in pieces:
        own, latent, value = piece.entries()
        found.append((own + first, latent, value))
        first += len(piece)
    rows, latents, values = (torch.cat(column) for column in zip(*found, strict=True))
    return _ragged(rows, latents, values, pieces[0].width, leading)


def _even_indices(piece: Codes) -> Tensor:
    assert piece.indices is not None
    return piece.indices


def _ragged(rows: Tensor, latents: Tensor, values: Tensor, width: int, leading: tuple[int, ...]) -> Codes:
    """Codes from their entries, with rows in any order; the order within a row is kept."""
    order = rows.argsort(stable=True)
    count = torch.Size(leading).numel()
    starts = torch.zeros(count + 1, dtype=torch.int64, device=rows.device)
    starts[1:] = torch.bincount(rows, minlength=count).cumsum(0)
    return Codes(values[order], width, latents[order], starts, leading)
