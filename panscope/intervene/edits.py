"""What may be done to latents while a model runs, as plain values; `attach` carries them out.

Ablating sets a code to 0, clamping to a value, steering adds to it (Templeton et al. 2024, Scaling Monosemanticity;
Marks et al. 2024, Sparse Feature Circuits). The codes of a latent stand for `code * W_dec`, so an edit moves the
activation along the latent's decoder vector by the change of the code; what the coder does not reconstruct stays.

Shape letters: B rows, n latents, N sequences, T tokens a sequence.
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
"""Places in the sequence, from 0, padding counted; through `generate` they go on. None is everywhere. A tensor of bool,
[T] or [N, T], marks them one by one, for each sequence apart; what lies beyond it is not meant."""


@dataclass(frozen=True)
class Edit:
    """Which codes an edit is about."""

    coder: str | LoadedCoder
    """The coder, or the name under which it is attached."""
    latents: int | Sequence[int] | Tensor
    """Numbers of latents, from 0."""
    positions: Positions = field(default=None, kw_only=True)
    site: Site | None = field(default=None, kw_only=True)
    """Of a multilayer coder, the one site where; None for all."""

    @property
    def amount(self) -> float:
        """The number that it is made with; 0 where there is none."""
        return 0.0

    def new(self, codes: Tensor) -> Tensor:
        """What takes the place of the codes [B, n] of those latents."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ablate(Edit):
    """Set latents to 0 (Bricken et al. 2023; Marks et al. 2024)."""

    def new(self, codes: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(codes)


@dataclass(frozen=True)
class Clamp(Edit):
    """Set latents to a value, in units of the coder's codes, active or not (Templeton et al. 2024)."""

    value: float

    @property
    def amount(self) -> float:
        """The value."""
        return _number(self.value)

    def new(self, codes: Tensor) -> Tensor:
        """The value."""
        return torch.full_like(codes, self.amount)


@dataclass(frozen=True)
class Steer(Edit):
    """Add `by` to latents, in units of the coder's codes, active or not; the sum may be below 0 (Templeton et al.
    2024)."""

    by: float

    @property
    def amount(self) -> float:
        """What is added."""
        return _number(self.by)

    def new(self, codes: Tensor) -> Tensor:
        """The sum."""
        return codes + self.amount


class Edits:
    """Several edits of one coder of F = `width` latents, in order; raises UserError for what cannot be meant."""

    def __init__(self, edits: Sequence[Edit], width: int, device: torch.device) -> None:
        numbers = [_latents(edit, width) for edit in edits]
        self.latents = torch.tensor(sorted({number for each in numbers for number in each}), device=device).long()
        """[n] all the latents they are about, each once."""
        self._steps = [
            (edit, torch.searchsorted(self.latents, torch.tensor(each, device=device).long()))
            for edit, each in zip(edits, numbers, strict=True)
        ]

    def new(self, old: Tensor, covered: Callable[[Positions], Tensor | None]) -> Tensor:
        """Codes [B, n] of `latents` after all edits; `covered` says which rows [B] are at some positions."""
        new = old
        for edit, columns in self._steps:
            before = new[:, columns]
            mask = covered(edit.positions)
            after = edit.new(before) if mask is None else torch.where(mask[:, None], edit.new(before), before)
            new = new.index_copy(1, columns, after)
        return new


def covered(positions: Positions, first: int, sequences: int, tokens: int, device: torch.device) -> Tensor | None:
    """[N T] bool: which rows of N sequences of T tokens, from position `first` on, are meant; None for all of them.

    Raises UserError for marks of another number of sequences.
    """
    if positions is None:
        return None
    marks = _marks(positions)
    here = _among(positions, first, tokens, device) if marks is None else _marked(marks, first, tokens)
    if here.dim() == 2 and len(here) != sequences:
        raise UserError(f"positions mark {len(here)} sequences, but the pass is of {sequences}: mark each of them")
    return here.to(device).expand(sequences, tokens).flatten()


def _marks(positions: Positions) -> Tensor | None:
    """Positions that are a tensor of bool."""
    return positions if isinstance(positions, Tensor) and positions.dtype == torch.bool else None


def _marked(marks: Tensor, first: int, tokens: int) -> Tensor:
    here = marks[..., first : first + tokens]
    return torch.nn.functional.pad(here, (0, tokens - here.shape[-1]))


def _among(positions: int | Sequence[int] | slice | Tensor, first: int, tokens: int, device: torch.device) -> Tensor:
    place = torch.arange(first, first + tokens, device=device)
    if isinstance(positions, slice):
        start, stop, step = positions.start or 0, positions.stop, positions.step or 1
        inside = (place >= start) & ((place - start) % step == 0)
        return inside if stop is None else inside & (place < stop)
    return torch.isin(place, torch.tensor(_whole("positions", positions), dtype=torch.int64, device=device))


def check_positions(positions: Positions) -> None:
    """Raise UserError unless they count from 0, or mark places by bool."""
    marks = _marks(positions)
    if marks is not None and marks.dim() not in (1, 2):
        raise UserError(f"positions mark places in the shape {tuple(marks.shape)}: mark those of [T] or [N, T]")
    if positions is None or marks is not None:
        return
    is_slice = isinstance(positions, slice)
    numbers = (positions.start, positions.stop, positions.step) if is_slice else _whole("positions", positions)
    if any(number is not None and number < 0 for number in numbers) or (is_slice and positions.step == 0):
        raise UserError(f"positions are {positions}: count them from 0, from the start of the sequence")


def check_amount(edit: Edit) -> None:
    """Raise UserError unless an edit is made with one finite number."""
    try:
        is_finite = math.isfinite(edit.amount)
    except (TypeError, ValueError, RuntimeError):  # what arrays say that are no one number
        is_finite = False
    if not is_finite:
        raise UserError(f"{edit}: give one finite number as its amount, and an edit for each amount")


def _number(value: Any) -> float:
    """One number, of any kind of array; raises TypeError for a text, which `float` would read."""
    if isinstance(value, str):
        raise TypeError
    return float(value)


def _latents(edit: Edit, width: int) -> list[int]:
    """Each once."""
    numbers = list(dict.fromkeys(_whole("latents", edit.latents)))
    for latent in numbers:
        if not 0 <= latent < width:
            raise UserError(f"latent {latent} of coder {edit.coder!r} does not exist: it has {width}, counted from 0")
    return numbers


def _whole(name: str, value: Any) -> list[int]:
    """One whole number or several, of any kind of array; raises UserError for anything else."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    several: list[Any] = list(plain) if isinstance(plain, Sequence) and not isinstance(plain, str) else [plain]
    try:
        if any(isinstance(number, bool) for number in several):
            raise TypeError
        return [operator.index(number) for number in several]
    except TypeError:
        raise UserError(
            f"{name} are {value!r}: give whole numbers, from 0 (places are marked by a tensor of bool)"
        ) from None
