"""Adam for one coder, with what some recipes add: clipping, loss scaling for float16, an average of the weights.

The order of a step is OpenAI's and Gemma Scope's: gradients -> (unscaled) -> part along unit decoder vectors taken out
-> clipped -> Adam -> constraint -> average.
"""

from typing import Any

import torch
from torch import Tensor

from panscope.coders.base import Coder
from panscope.train.schedule import TrainingConfig


class Optimiser:
    """Updates a coder in place."""

    def __init__(self, coder: Coder, config: TrainingConfig) -> None:
        self._coder = coder
        self._config = config
        self._learned = {name: p for name, p in coder.named_parameters() if p.requires_grad}
        self._adam = torch.optim.Adam(
            self._learned.values(), lr=config.learning_rate, betas=config.adam_betas, eps=config.adam_eps, fused=True
        )
        device = coder.W_enc.device.type
        self._scaler = torch.amp.GradScaler(device, enabled=config.precision == "float16")
        self._average: dict[str, Tensor] = {}
        if config.average_decay is not None:
            self._average = {name: torch.zeros_like(parameter) for name, parameter in self._learned.items()}
        self._steps = 0

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """One update along the gradient of `loss`; float16 skips it where the scaled gradient overflowed."""
        self._adam.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._adam)
        self._coder.project_gradient()
        if self._config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._learned.values(), self._config.clip_norm)
        self._adam.param_groups[0]["lr"] = learning_rate
        self._scaler.step(self._adam)
        self._scaler.update()
        self._coder.constrain()
        self._steps += 1
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        for name, average in self._average.items():
            assert self._config.average_decay is not None
            average.lerp_(self._learned[name], 1 - self._config.average_decay)

    @torch.no_grad()
    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, corrected for having started at 0 (as Adam's moments are); empty without averaging."""
        if not self._average or not self._steps:
            return {}
        assert self._config.average_decay is not None
        seen = 1 - self._config.average_decay**self._steps
        return {name: average / seen for name, average in self._average.items()}

    def state_dict(self) -> dict[str, Any]:
        """Moments, average and scale."""
        return {
            "adam": {name: dict(self._adam.state[parameter]) for name, parameter in self._learned.items()},
            "average": self._average,
            "scaler": self._scaler.state_dict(),
            "steps": self._steps,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; its shapes must be those of this coder."""
        for name, parameter in self._learned.items():
            moments = state["adam"][name].items()
            self._adam.state[parameter] = {key: value.to(parameter.device).clone() for key, value in moments}
        for name, average in self._average.items():
            average.copy_(state["average"][name])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        self._steps = state["steps"]
