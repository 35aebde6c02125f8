"""What brings activations to a common size, so that learning rates and penalties carry over between sites.

A normaliser is a value beside a coder and never hidden inside it. Three kinds are one fixed factor a site, measured
before training, which `transforms` folds into the weights at the end: `unit_rms`: E|x|^2 = 1 (Gemma Scope section 3.1);
`sqrt_d`: E|x| = sqrt(D) (Llama Scope section 3.3; Anthropic, April 2024); `rms_sqrt_d`: E|x|^2 = D (Scaling
Monosemanticity). Two are different for every row and cannot be folded, so they stay with the finished coder:
`standardise`: (x - mean(x)) / (std(x) + 1e-5) over a row's dimensions, undone after decoding by y std(x) + mean(x)
(Multi-Layer SAE; Gao et al.); `token_norm`: every row to norm sqrt(D), undone likewise. `none`: as they come.

Shape letters: B rows, D input width, E output width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from panscope.config import Config
from panscope.types import Site, UserError

Kind = Literal["unit_rms", "sqrt_d", "rms_sqrt_d", "standardise", "token_norm", "none"]
PER_ROW: tuple[Kind, ...] = ("standardise", "token_norm")
_EPSILON = 1e-5
"""What the Multi-Layer SAE's, OpenAI's and SAELens' code add to a row's standard deviation before they divide by it;
none of them adds it where they undo that."""


class Part(Config):
    """The columns of one site, where several are concatenated."""

    width: int = Field(gt=0)
    scale: float = Field(gt=0)


@dataclass(frozen=True)
class RowStats:
    """A per-row normaliser's figures: inside = (x - centre) / divisor, and y = y_inside * size + centre.

    Each is [B, 1] or, where sites are concatenated, [B, D].
    """

    centre: Tensor
    divisor: Tensor
    """Above zero."""
    size: Tensor
    """Zero for rows that have no size; else the divisor, or 1e-5 less."""


class Normaliser(Config):
    """What rows are multiplied by before the coder sees them: one factor for its input, one for its target."""

    kind: Kind
    scale_in: float = Field(gt=0)
    scale_out: float = Field(gt=0)
    parts: tuple[Part, ...] = ()
    """A crosscoder's sites in order: their columns' factors take the place of the two above."""

    @model_validator(mode="after")
    def _scales_have_a_use(self) -> Self:
        if self.parts and (self.scale_in, self.scale_out) != (1, 1):
            raise ValueError("scale_in and scale_out must be 1 where parts have scales of their own")
        return self

    def factors(self, scale: float) -> Tensor | float:
        """`scale` itself, or the parts' factors [D] in float64."""
        if not self.parts:
            return scale
        return torch.cat([torch.full((part.width,), part.scale, dtype=torch.float64) for part in self.parts])

    def left_after_folding(self) -> "Normaliser":
        """What still has to be applied once the fixed factors are in the weights: itself, or nothing."""
        return self if self.kind in PER_ROW else Normaliser(kind="none", scale_in=1, scale_out=1)

    def input(self, x: Tensor) -> tuple[Tensor, RowStats | None]:
        """x [B, D] normalised, and what undoes it row by row."""
        if self.kind in PER_ROW:
            stats = self._stats(x)
            return (x - stats.centre) / stats.divisor, stats
        return _times(x, self.factors(self.scale_in)), None

    def target(self, y: Tensor, stats: RowStats | None) -> Tensor:
        """y [B, E] as `undo` gives it back; a per-row kind uses what `input` found: at inference there is no other."""
        if stats is not None:
            # A row without a size is all centre but for rounding, which must not be made large.
            return (y - stats.centre) / torch.where(stats.size > _EPSILON, stats.size, stats.divisor)
        return _times(y, self.factors(self.scale_out))

    def undo(self, y_hat: Tensor, stats: RowStats | None) -> Tensor:
        """A reconstruction [B, E] as raw rows."""
        if stats is not None:
            return y_hat * stats.size + stats.centre
        factors = self.factors(self.scale_out)
        return y_hat / (factors.to(y_hat) if isinstance(factors, Tensor) else factors)

    def _stats(self, x: Tensor) -> RowStats:
        if not self.parts:
            return _row_stats(self.kind, x)
        pieces = x.split([part.width for part in self.parts], dim=1)
        stats = [_row_stats(self.kind, piece) for piece in pieces]
        return RowStats(
            _side_by_side(pieces, [each.centre for each in stats]),
            _side_by_side(pieces, [each.divisor for each in stats]),
            _side_by_side(pieces, [each.size for each in stats]),
        )


def _times(x: Tensor, factors: Tensor | float) -> Tensor:
    return x * (factors.to(x) if isinstance(factors, Tensor) else factors)


def _row_stats(kind: Kind, x: Tensor) -> RowStats:
    """Of the rows [B, D] of one site."""
    if kind == "standardise":
        std = x.std(dim=1, keepdim=True)
        return RowStats(x.mean(dim=1, keepdim=True), std + _EPSILON, std)
    size = x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1])
    return RowStats(torch.zeros_like(size), _above_zero(size), size)


def _above_zero(size: Tensor) -> Tensor:
    """What a row can be divided by: one without a size is its centre, so 0 / this is 0."""
    return size.clamp_min(torch.finfo(size.dtype).tiny)


def _side_by_side(pieces: Sequence[Tensor], figures: list[Tensor]) -> Tensor:
    """[B, D] every piece's figure [B, 1] at each of its columns."""
    return torch.cat([figure.expand_as(piece) for figure, piece in zip(figures, pieces, strict=True)], dim=1)


def scale_for(kind: Kind, site: Site, *, d: int, mean_norm: float, mean_squared_norm: float) -> float:
    """The factor that gives rows of `site`, of width d, the size `kind` asks for; UserError where there is none.

    1 for the kinds that are none or different for every row.
    """
    if kind == "none" or kind in PER_ROW:
        return 1.0
    size = mean_norm if kind == "sqrt_d" else mean_squared_norm
    if not (math.isfinite(size) and size > 0):
        seen = "are all zero" if size == 0 else f"have the size {size}"
        raise UserError(f"activations at {site} {seen} and cannot be normalised: leave this site out")
    if kind == "unit_rms":
        return 1 / math.sqrt(size)
    return math.sqrt(d) / size if kind == "sqrt_d" else math.sqrt(d / size)
