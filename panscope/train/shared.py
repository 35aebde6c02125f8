"""What several coders need of one batch, made once: rows in float32, normalised, weighed, and their sums.

Shape letters: B rows of a batch, S stacks of rows (1, but for multilayer coders), D input width, E output width.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from panscope.coders.normaliser import Normaliser, RowStats
from panscope.coders.wiring import Wiring
from panscope.train.losses import row_weights
from panscope.train.schedule import TrainingConfig
from panscope.types import ActivationBatch


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
    prepared: dict[str, Any] = field(default_factory=dict)
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
        self._raw: dict[Any, tuple[Tensor, Tensor]] = {}
        self._normalised: dict[Any, Normalised] = {}
        self._weights: dict[Any, Tensor] = {}
        self._sums: dict[Any, TargetSums] = {}

    def __len__(self) -> int:
        return len(self._batch)

    def normalised(self, wiring: Wiring, normaliser: Normaliser) -> Normalised:
        """The rows that a coder of this wiring learns from."""
        key = (wiring, normaliser)
        if key not in self._normalised:
            raw_x, raw_y = self._raw_rows(wiring)
            x, stats = normaliser.input(raw_x)
            same = raw_x is raw_y and normaliser.scale_in == normaliser.scale_out
            y = x if same else normaliser.target(raw_y, stats)
            self._normalised[key] = Normalised(raw_y, x, y, stats)
        return self._normalised[key]

    def weights(self, wiring: Wiring, normaliser: Normaliser, config: TrainingConfig) -> Tensor:
        """[S B] what each row counts. A raw error is the normalised one times the row's size: it weighs size^2."""
        key = (wiring, normaliser, config.loss, config.loss_space)
        if key not in self._weights:
            rows = self.normalised(wiring, normaliser)
            if config.loss_space == "normalised" or rows.stats is None:
                self._weights[key] = row_weights(config.loss, rows.y, wiring.stacks)
            else:
                size = rows.stats.size
                assert size.shape[1] == 1, "concatenated sites have no one size a row; the plan refuses them"
                self._weights[key] = row_weights(config.loss, rows.raw_y, wiring.stacks) * size.squeeze(1).square()
        return self._weights[key]

    def sums(self, wiring: Wiring, normaliser: Normaliser) -> TargetSums:
        """The sums of the targets."""
        key = (wiring, normaliser)
        if key not in self._sums:
            y = self.normalised(wiring, normaliser).y
            squares = torch.linalg.vector_norm(y, dim=1).double().square().sum()
            self._sums[key] = TargetSums(y.sum(dim=0).double(), squares)
        return self._sums[key]

    def _raw_rows(self, wiring: Wiring) -> tuple[Tensor, Tensor]:
        if wiring not in self._raw:
            x, y = wiring.rows(self._batch)
            raw_x = x.float()
            self._raw[wiring] = (raw_x, raw_x if y is x else y.float())
        return self._raw[wiring]
