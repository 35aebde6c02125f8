"""What several coders need of one batch, made once: rows in float32, normalised, weighed, and their sums.

Shape letters: B rows of a batch, S stacks of rows (1, but for multilayer coders), D input width, E output width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from panscope.coders.normaliser import Normaliser, RowStats
from panscope.coders.wiring import Wiring
from panscope.training.losses import row_weights
from panscope.training.schedule import TrainingConfig
from panscope.types import ActivationBatch, Once


@dataclass(frozen=True)
class Normalised:
    """The rows of one wiring under one normaliser."""

    raw_y: Tensor
    """[S B, E] float32."""
    x: Tensor
    """[S B, D]."""
    y: Tensor
    """[S B, E]."""
    stats: RowStats | None
    prepared: Once = field(default_factory=Once)
    """What kernels made of x."""


@dataclass(frozen=True)
class TargetSums:
    """What FVU needs of targets y [S B, E]: sums over one batch, made float64 to be added up."""

    total: Tensor
    """[E]."""
    squares: Tensor
    """[]."""


class SharedBatch:
    """One batch and everything made of it so far; coders of one site and normaliser find the same tensors."""

    def __init__(self, batch: ActivationBatch) -> None:
        self._batch = batch
        self._made = Once()

    def __len__(self) -> int:
        return len(self._batch)

    def normalised(self, wiring: Wiring, normaliser: Normaliser) -> Normalised:
        """The rows that a coder of this wiring learns from."""
        return self._made.get(("rows", wiring, normaliser), lambda: self._normalised(wiring, normaliser))

    def weights(self, wiring: Wiring, normaliser: Normaliser, config: TrainingConfig) -> Tensor:
        """[S B] what each row counts. A raw error is the normalised one times the row's size: it weighs size^2."""
        key = ("weights", wiring, normaliser, config.loss, config.loss_space)
        return self._made.get(key, lambda: self._weights(wiring, normaliser, config))

    def sums(self, wiring: Wiring, normaliser: Normaliser) -> TargetSums:
        """The sums of the targets."""
        return self._made.get(("sums", wiring, normaliser), lambda: self._sums(wiring, normaliser))

    def _normalised(self, wiring: Wiring, normaliser: Normaliser) -> Normalised:
        raw_x, raw_y = self._made.get(("raw", wiring), lambda: self._raw(wiring))
        x, stats = normaliser.input(raw_x)
        same = raw_x is raw_y and normaliser.scale_in == normaliser.scale_out and stats is None
        return Normalised(raw_y, x, x if same else normaliser.target(raw_y, stats), stats)

    def _weights(self, wiring: Wiring, normaliser: Normaliser, config: TrainingConfig) -> Tensor:
        rows = self.normalised(wiring, normaliser)
        if config.loss_space == "normalised" or rows.stats is None:
            return row_weights(config.loss, rows.y, wiring.stacks)
        size = rows.stats.size
        assert size.shape[1] == 1, "concatenated sites have no one size a row; the plan refuses them"
        return row_weights(config.loss, rows.raw_y, wiring.stacks) * size.squeeze(1).square()

    def _sums(self, wiring: Wiring, normaliser: Normaliser) -> TargetSums:
        y = self.normalised(wiring, normaliser).y
        squares = torch.linalg.vector_norm(y, dim=1).double().square().sum()
        return TargetSums(y.sum(dim=0).double(), squares)

    def _raw(self, wiring: Wiring) -> tuple[Tensor, Tensor]:
        x, y = wiring.rows(self._batch)
        raw_x = x.float()
        return raw_x, raw_x if y is x else y.float()
