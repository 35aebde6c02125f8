"""One coder in training: its optimiser, schedules, normaliser, dead-latent clock and running figures.

A step is: rows of its sites, normalised -> loss -> gradients -> (parallel part taken out) -> Adam -> (unit norm again).

Shape letters: B rows of a batch, S stacks of rows (1, but for multilayer coders), D input width, E output width.
"""

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder, Objective, Rows
from panscope.coders.normaliser import Normaliser, RowStats
from panscope.coders.wiring import Wiring
from panscope.train import schedule
from panscope.train.losses import row_weights
from panscope.train.median import geometric_median
from panscope.train.meters import DeadClock, Meter
from panscope.train.optimiser import Optimiser
from panscope.train.schedule import TrainingConfig
from panscope.types import ActivationBatch, NonFiniteError


class Trainee:
    """A coder on its way; `steps` is how many steps it learns for."""

    def __init__(
        self, name: str, coder: Coder, wiring: Wiring, normaliser: Normaliser, config: TrainingConfig, *, steps: int
    ) -> None:
        self.name = name
        self.coder = coder
        self.wiring = wiring
        self.normaliser = normaliser
        self.config = config
        self.steps = steps
        device = coder.W_enc.device
        self._optimiser = Optimiser(coder, config)
        self.clock = DeadClock(coder.config.width, config.dead_window, device)
        self.meter = Meter(coder.config.d_out, device)

    def step(self, batch: ActivationBatch, step: int) -> None:
        """Learn from one batch; `step` counts from 0. Nothing is read back from the device (but by float16's scale)."""
        rows = self._rows(batch)
        if step == 0:
            self._begin(batch, rows)
        with self._precision():
            objective = self.coder.objective(rows, schedule.sparsity(self.config, self.coder.config.sparsity, step))
        self._optimiser.step(objective.loss, schedule.learning_rate(self.config, step, self.steps))
        self.coder.track(objective)
        self._count(rows, objective)

    def _rows(self, batch: ActivationBatch) -> Rows:
        raw_x, raw_y = (side.float() for side in self.wiring.rows(batch))
        x, stats = self.normaliser.input(raw_x)
        y = self.normaliser.target(raw_y, stats)
        return Rows(x, y, self._weights(raw_y, y, stats), self.clock.dead())

    def _weights(self, raw_y: Tensor, y: Tensor, stats: RowStats | None) -> Tensor:
        """[S B]. A raw error is the normalised one times the row's size, so its square weighs size^2."""
        if self.config.loss_space == "normalised" or stats is None:
            return row_weights(self.config.loss, y, self.wiring.stacks)
        assert stats.size.shape[1] == 1, "concatenated sites have no one size a row; the plan refuses them"
        return row_weights(self.config.loss, raw_y, self.wiring.stacks) * stats.size.squeeze(1).square()

    @torch.no_grad()
    def _begin(self, batch: ActivationBatch, rows: Rows) -> None:
        """What depends on the first batch."""
        if self.config.b_dec_init != "zero":
            raw = self.config.b_dec_init == "geometric_median_raw"
            self.coder.b_dec.copy_(geometric_median(self.wiring.rows(batch)[1].float() if raw else rows.y))

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.coder.W_enc.device.type, getattr(torch, self.config.precision))

    def _count(self, rows: Rows, objective: Objective) -> None:
        tokens = len(rows.x) // self.wiring.stacks
        self.clock.update(objective.latents.firings(self.config.active_above), tokens)
        self.meter.update(rows.y, objective)

    def read(self, step: int) -> dict[str, Any]:
        """The figures to log after `step` steps, rates as of the last of them.

        Raises NonFiniteError if the loss is not a number any more.
        """
        figures = self.meter.read()
        if not math.isfinite(figures["loss"]):
            raise NonFiniteError(
                f"coder {self.name}: the loss is {figures['loss']} at step {step}; start again with a learning_rate "
                f"below {self.config.learning_rate:g}"
            )
        now = {
            "dead_fraction": self.clock.dead_fraction(),
            "dead_window": self.clock.window,
            "learning_rate": schedule.learning_rate(self.config, step - 1, self.steps),
            "sparsity": schedule.sparsity(self.config, self.coder.config.sparsity, step - 1),
        }
        return {"coder": self.name} | figures | now

    def is_finite(self) -> bool:
        """Whether every weight is a finite number: asked before a checkpoint is written."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.coder.tensors().values())

    @torch.no_grad()
    def finished(self) -> Coder:
        """The coder to keep: with the averaged weights, where the recipe averages, brought back to its constraints."""
        averaged = self._optimiser.averaged()
        if not averaged:
            return self.coder
        kept = coders.build(self.coder.config).to(self.coder.W_enc.device)
        kept.load_tensors(self.coder.tensors() | averaged)
        kept.constrain()
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return {
            "tensors": self.coder.tensors(),
            "optimiser": self._optimiser.state_dict(),
            "normaliser": self.normaliser.model_dump(mode="json"),
            "clock": self.clock.state_dict(),
            "meter": self.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; its shapes must be those of this coder."""
        self.coder.load_tensors(state["tensors"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.normaliser = Normaliser.model_validate(state["normaliser"])
        self.clock.load_state_dict(state["clock"])
        self.meter.load_state_dict(state["meter"])
