"""One coder in training: its optimiser, schedules, normaliser, dead-latent clock and running figures.

A step is: rows of its sites, normalised -> loss -> gradients -> (parallel part taken out) -> Adam -> (unit norm again).

Shape letters: B rows of a batch, E output width.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from panscope import coders
from panscope.coders.base import Coder, Objective
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import Wiring
from panscope.kernels.backend import Kernels
from panscope.ops.base import Rows
from panscope.ops.dense import DenseOps
from panscope.ops.sparse import SparseOps
from panscope.training import schedule
from panscope.training.accumulation import StepSums, accumulate
from panscope.training.median import geometric_median
from panscope.training.meters import DeadClock, TrainingMeter
from panscope.training.optimiser import Optimiser
from panscope.training.precision import check_precision, forward_in, step_in
from panscope.training.schedule import Precision, TrainingConfig
from panscope.training.shared import SharedBatch
from panscope.training.sparse_dense_switch import SparseDenseSwitch
from panscope.types import ActivationBatch, NonFiniteError


@dataclass(frozen=True)
class StepBackend:
    """How a step is computed."""

    kernels: Kernels | None = None
    """What sparse steps are computed with; None is the reference."""
    parts: int = 1
    """The number of parts in which the rows of a step are processed, one after another."""


class CoderTrainer:
    """One coder in training; `steps` is how many steps it learns for."""

    def __init__(
        self,
        name: str,
        coder: Coder,
        wiring: Wiring,
        normaliser: Normaliser,
        config: TrainingConfig,
        *,
        steps: int,
        backend: StepBackend | None = None,
    ) -> None:
        self.name = name
        self.coder = coder
        self.wiring = wiring
        self.normaliser = normaliser
        self.config = config
        self.steps = steps
        device = coder.W_enc.device
        backend = backend or StepBackend()
        self._kernels = kernels = backend.kernels
        self._parts = backend.parts
        self._switch = SparseDenseSwitch(kernels)
        self._optimiser = Optimiser(coder, config, scaled=kernels is None)
        check_precision(config.precision, device, name)
        self._precision: Precision = "float32" if kernels is not None else config.precision
        self.clock = DeadClock(coder.config.width, config.dead_window, device)
        self.meter = TrainingMeter(coder.config.d_out, device)

    @property
    def is_sparse(self) -> bool:
        """Whether it has sparse kernels to learn with."""
        return self._kernels is not None

    def step(self, batch: ActivationBatch, step: int) -> None:
        """Learn from one batch alone; `step` counts from 0."""
        shared = SharedBatch(batch)
        if self._kernels is None:
            self.learn(shared, step)
        else:
            self._kernels.parallel_for(lambda _: self.learn(shared, step), 1)

    def learn(self, batch: SharedBatch, step: int) -> None:
        """Learn from a batch that other coders learn from too; `step` counts from 0.

        Of the device's results only few are waited for: float16's scale, the number of entries of a ragged code,
        BatchTopK's guess, AuxK's dead latents and, while its steps are dense, how many entries were active.
        """
        with record_function("panscope::rows"):
            shared = batch.normalised(self.wiring, self.normaliser)
            weights = batch.weights(self.wiring, self.normaliser, self.config)
        rows = Rows(shared.x, shared.y, weights, self.clock.dead(), shared.prepared)
        if step == 0:
            self._begin(shared.raw_y, rows)
        sparsity = schedule.sparsity(self.config, self.coder.config.sparsity, step)
        rate = schedule.learning_rate(self.config, step, self.steps)
        with step_in(self._precision):
            done = self._switch.accumulate(lambda ops: self._accumulate(rows, sparsity, ops))
            self._optimiser.step(done.loss, rate, self._switch.sparse)
        self._switch.stepped()
        with record_function("panscope::meters"):
            self.coder.track(done.least)
            self.clock.update(done.firings, len(batch))
            self.meter.update(batch.sums(self.wiring, self.normaliser), done)

    def _accumulate(self, rows: Rows, sparsity: float, ops: SparseOps | DenseOps) -> StepSums:
        """The gradient of a step, part by part."""

        def objective(part: Rows) -> Objective:
            with forward_in(self._precision, self.coder.W_enc.device):
                return self.coder.objective(part, sparsity, ops)

        def backward(loss: Tensor) -> None:
            self._optimiser.backward(loss)
            if self._parts > 1:
                ops.end_part()

        self._optimiser.zero_grad()
        return accumulate(rows, self._parts, objective, backward, self.config.active_above)

    @torch.no_grad()
    def _begin(self, raw_y: Tensor, rows: Rows) -> None:
        """What depends on the first batch."""
        if self.config.b_dec_init != "zero":
            raw = self.config.b_dec_init == "geometric_median_raw"
            self.coder.b_dec.copy_(geometric_median(raw_y if raw else rows.y))

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
            "kernels": self._switch.name,
            "learning_rate": schedule.learning_rate(self.config, step - 1, self.steps),
            "sparsity": schedule.sparsity(self.config, self.coder.config.sparsity, step - 1),
        }
        return {"coder": self.name} | figures | now

    def is_finite(self) -> bool:
        """Whether every weight is a finite number: asked before a checkpoint is written."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.coder.tensors().values())

    def drop_optimiser(self) -> None:
        """Free Adam's moments and the gradients; no step can follow."""
        self._optimiser.drop_moments()

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
        """Everything needed to resume bit for bit."""
        return {
            "tensors": self.coder.tensors(),
            "optimiser": self._optimiser.state_dict(),
            "normaliser": self.normaliser.model_dump(mode="json"),
            "switch": self._switch.state_dict(),
            "clock": self.clock.state_dict(),
            "meter": self.meter.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; its shapes must be those of this coder."""
        self.coder.load_tensors(state["tensors"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.normaliser = Normaliser.model_validate(state["normaliser"])
        self._switch.load_state_dict(state["switch"])
        self.clock.load_state_dict(state["clock"])
        self.meter.load_state_dict(state["meter"])
