"""One coder in training: its optimiser, schedules, normaliser, dead-latent clock and running figures.

A step is: rows of its sites, normalised -> loss -> gradients -> (parallel part taken out) -> Adam -> (unit norm again).

Shape letters: B rows, D input width, E output width.
"""

import math
from typing import Any

import torch

from panscope.coders.base import Coder
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import Wiring
from panscope.train import schedule
from panscope.train.meters import DeadClock, Meter
from panscope.train.schedule import TrainingConfig
from panscope.types import ActivationBatch, NonFiniteError


class Trainee:
    """A coder on its way; `steps` is the length of the whole run."""

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
        self._parameters = dict(coder.named_parameters())
        self._adam = torch.optim.Adam(
            self._parameters.values(), lr=config.learning_rate, betas=config.adam_betas, eps=config.adam_eps, fused=True
        )
        self.clock = DeadClock(coder.config.width, config.dead_window, device)
        self.meter = Meter(coder.config.d_out, device)

    def step(self, batch: ActivationBatch, step: int) -> None:
        """Learn from one batch; `step` counts from 0. Nothing is read back from the device."""
        x, y = self.wiring.rows(batch)
        x, y = x.float() * self.normaliser.scale_in, y.float() * self.normaliser.scale_out
        objective = self.coder.objective(x, y, schedule.sparsity(self.config, self.coder.config.sparsity, step))
        self._adam.zero_grad(set_to_none=True)
        objective.loss.backward()
        self._update(schedule.learning_rate(self.config, step, self.steps))
        self.clock.update(objective.latents.firings(), len(x))
        self.meter.update(y, objective)

    def _update(self, learning_rate: float) -> None:
        self.coder.project_gradient()
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        self.coder.constrain()

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
        """Whether every parameter is a finite number: asked before a checkpoint is written."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._parameters.values())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        moments = {name: dict(self._adam.state[parameter]) for name, parameter in self._parameters.items()}
        return {
            "parameters": {name: parameter.detach() for name, parameter in self._parameters.items()},
            "adam": moments,
            "normaliser": self.normaliser.model_dump(),
            "clock": self.clock.state_dict(),
            "meter": self.meter.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; its shapes must be those of this coder."""
        for name, parameter in self._parameters.items():
            parameter.copy_(state["parameters"][name])
            moments = state["adam"][name].items()
            self._adam.state[parameter] = {key: value.to(parameter.device).clone() for key, value in moments}
        self.normaliser = Normaliser.model_validate(state["normaliser"])
        self.clock.load_state_dict(state["clock"])
        self.meter.load_state_dict(state["meter"])
