"""Edits of latents while a model runs, as plain values; `attach` applies them.

Ablating sets a code to 0, clamping sets it to a value, steering adds to it (Templeton et al. 2024, Scaling
Monosemanticity; Marks et al. 2024, Sparse Feature Circuits). A latent contributes `code * W_dec`, so an edit moves the
activation along the latent's decoder vector by the change of the code; the reconstruction error is unchanged.

Shape letters: B rows, n latents, N sequences, T tokens per sequence.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from panscope.loading.loaded_coder import LoadedCoder
from panscope.types import Site, UserError

Positions = int | Sequence[int] | slice | Tensor | None
"""Positions in the sequence, from 0, padding included; they continue through `generate`. None is all positions. A bool
tensor [T], or [N, T] to differ between sequences, is a mask; positions beyond it are not selected."""


@dataclass(frozen=True)
class Edit:
    """An edit of some latents of a coder at some positions."""

    coder: str | LoadedCoder
    """The coder, or the name under which it is attached."""
    latents: int | Sequence[int] | Tensor
    """Indices of latents, from 0."""
    positions: Positions = field(default=None, kw_only=True)
    """Where it applies; everywhere by default."""
    site: Site | None = field(default=None, kw_only=True)
    """For a multilayer coder, the site to edit at; None for all its sites."""

    @property
    def amount(self) -> float:
        """The edit's number, such as the value of a clamp; 0 for edits without one."""
        return 0.0

    def new(self, codes: Tensor) -> Tensor:
        """The new codes [B, n] of the latents, given their codes [B, n]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ablate(Edit):
    """Set latents to 0 (Bricken et al. 2023; Marks et al. 2024)."""

    def new(self, codes: Tensor) -> Tensor:
        """Zeros [B, n]."""
        return torch.zeros_like(codes)


@dataclass(frozen=True)
class Clamp(Edit):
    """Set latents to a value, in units of the coder's codes, active or not (Templeton et al. 2024)."""

    value: float
    """The code that the latent gets."""

    @property
    def amount(self) -> float:
        """The value that codes are set to."""
        return _as_float(self.value)

    def new(self, codes: Tensor) -> Tensor:
        """The value, as [B, n]."""
        return torch.full_like(codes, self.amount)


@dataclass(frozen=True)
class Steer(Edit):
    """Add `by` to latents, in units of the coder's codes, active or not; the sum may be negative (Templeton et al.
    2024)."""

    by: float
    """The number that is added to the code."""

    @property
    def amount(self) -> float:
        """The number that is added to codes."""
        return _as_float(self.by)

    def new(self, codes: Tensor) -> Tensor:
        """The codes plus the number, [B, n]."""
        return codes + self.amount


class Edits:
    """Several edits of one coder of F = `width` latents, in order; raises UserError for latents that do not exist."""

    def __init__(self, edits: Sequence[Edit], width: int, device: torch.device) -> None:
        latents = [_latents(edit, width) for edit in edits]
        self.latents = torch.tensor(sorted({latent for each in latents for latent in each}), device=device).long()
        """[n] sorted indices of all latents that any of the edits changes."""
        self._steps = [
            (edit, torch.searchsorted(self.latents, torch.tensor(each, device=device).long()))
            for edit, each in zip(edits, latents, strict=True)
        ]

    def new(self, old: Tensor, row_mask: Callable[[Positions], Tensor | None]) -> Tensor:
        """Codes [B, n] of `latents` after all edits; `row_mask` returns the mask [B] of rows at given positions."""
        new = old
        for edit, columns in self._steps:
            before = new[:, columns]
            mask = row_mask(edit.positions)
            after = edit.new(before) if mask is None else torch.where(mask[:, None], edit.new(before), before)
            new = new.index_copy(1, columns, after)
        return new


def row_mask(positions: Positions, first: int, sequences: int, tokens: int, device: torch.device) -> Tensor | None:
    """[N T] bool: which rows of N sequences of T tokens, from position `first` on, are selected; None for all of them.

    Raises UserError if `positions` is a mask [N, T] of another number of sequences.
    """
    if positions is None:
        return None
    mask = _as_mask(positions)
    part = _part_of_mask(mask, first, tokens) if mask is not None else _compare(positions, first, tokens, device)
    if part.dim() == 2 and len(part) != sequences:
        raise UserError(
            f"positions is a mask of {len(part)} sequences, but the pass has {sequences}: give a mask [T] or "
            f"[{sequences}, T]"
        )
    return part.to(device).expand(sequences, tokens).flatten()


def _as_mask(positions: Positions) -> Tensor | None:
    """The positions if they are a bool tensor, else None."""
    return positions if isinstance(positions, Tensor) and positions.dtype == torch.bool else None


def _part_of_mask(mask: Tensor, first: int, tokens: int) -> Tensor:
    part = mask[..., first : first + tokens]
    return torch.nn.functional.pad(part, (0, tokens - part.shape[-1]))


def _compare(positions: int | Sequence[int] | slice | Tensor, first: int, tokens: int, device: torch.device) -> Tensor:
    position = torch.arange(first, first + tokens, device=device)
    if isinstance(positions, slice):
        start, stop, step = positions.start or 0, positions.stop, positions.step or 1
        inside = (position >= start) & ((position - start) % step == 0)
        return inside if stop is None else inside & (position < stop)
    return torch.isin(position, torch.tensor(_integers("positions", positions), dtype=torch.int64, device=device))


def check_positions(positions: Positions) -> None:
    """Raise UserError unless they are integers from 0 on, a slice of such, or a bool mask [T] or [N, T]."""
    mask = _as_mask(positions)
    if mask is not None and mask.dim() not in (1, 2):
        raise UserError(f"positions is a mask of the shape {tuple(mask.shape)}: give a mask [T] or [N, T]")
    if positions is None or mask is not None:
        return
    is_slice = isinstance(positions, slice)
    numbers = (positions.start, positions.stop, positions.step) if is_slice else _integers("positions", positions)
    if any(number is not None and number < 0 for number in numbers) or (is_slice and positions.step == 0):
        raise UserError(f"positions are {positions}: count them from 0, from the start of the sequence")


def check_amount(edit: Edit) -> None:
    """Raise UserError unless the edit's amount is one finite number."""
    try:
        is_finite = math.isfinite(edit.amount)
    except (TypeError, ValueError, RuntimeError):  # raised by arrays of several numbers
        is_finite = False
    if not is_finite:
        raise UserError(f"the amount of {edit} is not one finite number: give one, and an edit for each amount")


def _as_float(value: Any) -> float:
    """A number, or the element of a one-element array, as a float; raises TypeError for a str, which `float` parses."""
    if isinstance(value, str):
        raise TypeError
    return float(value)


def _latents(edit: Edit, width: int) -> list[int]:
    """The edit's latents without duplicates; raises UserError for one that does not exist."""
    latents = list(dict.fromkeys(_integers("latents", edit.latents)))
    for latent in latents:
        if not 0 <= latent < width:
            raise UserError(f"latent {latent} of coder {edit.coder!r} does not exist: it has {width}, counted from 0")
    return latents


def _integers(name: str, value: Any) -> list[int]:
    """An integer, or a sequence or array of integers, as a list; raises UserError for anything else."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    several: list[Any] = list(plain) if isinstance(plain, Sequence) and not isinstance(plain, str) else [plain]
    try:
        if any(isinstance(number, bool) for number in several):
            raise TypeError
        return [operator.index(number) for number in several]
    except TypeError:
        raise UserError(
            f"{name} are {value!r}: give integers from 0 on (a mask of positions is a bool tensor)"
        ) from None
