"""What may be done to latents while a model runs, as plain values; `attach` carries them out.

Ablating sets a code to 0, clamping to a value, steering adds to it (Templeton et al. 2024, Scaling Monosemanticity;
Marks et al. 2024, Sparse Feature Circuits). The codes of a latent stand for `code * W_dec`, so an edit moves the
activation along the latent's decoder vector by the change of the code; what the coder does not reconstruct stays.

Shape letters: B rows, n latents, N sequences, T tokens a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from panscope.types import Site, UserError

Positions = int | Sequence[int] | slice | None
"""Places in the sequence, from 0, padding counted; through `generate` they go on. None is everywhere."""


@dataclass(frozen=True)
class Edit:
    """Which codes an edit is about."""

    coder: str
    """The name under which the coder is attached."""
    latents: int | Sequence[int]
    """Numbers of latents, from 0."""
    positions: Positions = field(default=None, kw_only=True)
    site: Site | None = field(default=None, kw_only=True)
    """Of a multilayer coder, the one site where; None for all."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The latents."""
        return as_tuple(self.latents)

    def new(self, codes: Tensor) -> Tensor:
        """What takes the place of the codes [B, n] of those latents."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ablate(Edit):
    """Set latents to 0."""

    def new(self, codes: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(codes)


@dataclass(frozen=True)
class Clamp(Edit):
    """Set latents to a value, in units of the coder's codes, active or not."""

    value: float

    def new(self, codes: Tensor) -> Tensor:
        """The value."""
        return torch.full_like(codes, self.value)


@dataclass(frozen=True)
class Steer(Edit):
    """Add `by` to latents, in units of the coder's codes, active or not; the sum may be below 0."""

    by: float

    def new(self, codes: Tensor) -> Tensor:
        """The sum."""
        return codes + self.by


def covered(positions: Positions, first: int, tokens: int, device: torch.device) -> Tensor | None:
    """[T] bool: which of T tokens from position `first` on are meant; None for all of them."""
    if positions is None:
        return None
    place = torch.arange(first, first + tokens, device=device)
    if isinstance(positions, slice):
        start, stop, step = positions.start or 0, positions.stop, positions.step or 1
        inside = (place >= start) & ((place - start) % step == 0)
        return inside if stop is None else inside & (place < stop)
    return torch.isin(place, torch.tensor(as_tuple(positions), dtype=torch.int64, device=device))


def check(edit: Edit, width: int) -> None:
    """Raise UserError unless the coder of F = `width` latents has these, and positions count from 0."""
    for latent in edit.numbers:
        if not 0 <= latent < width:
            raise UserError(f"latent {latent} of coder {edit.coder!r} does not exist: it has {width}, counted from 0")
    check_positions(edit.positions)


def check_positions(positions: Positions) -> None:
    """Raise UserError unless they count from 0."""
    is_slice = isinstance(positions, slice)
    numbers = (
        (positions.start, positions.stop, positions.step)
        if is_slice
        else as_tuple(() if positions is None else positions)
    )
    if any(number is not None and number < 0 for number in numbers) or (is_slice and positions.step == 0):
        raise UserError(f"positions are {positions}: count them from 0, from the start of the sequence")


def as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    """One number or several."""
    return (value,) if isinstance(value, int) else tuple(value)
