"""Adam for one coder, with what some recipes add: clipping, loss scaling for float16, an average of the weights.

The order of a step is OpenAI's and Gemma Scope's: gradients -> (unscaled) -> part along unit decoder vectors taken out
-> clipped -> Adam -> constraint -> average. After a sparse backward pass the two matrices have no gradient of their
own: kernels go from what the pass noted down straight to Adam, latent by latent, with the same moments.

A step whose loss is not a number changes nothing; the meters carry the loss to where it is reported.
"""

from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from panscope.coders.base import Coder
from panscope.kernels.backend import AdamStep, Finish, Gradient
from panscope.ops.sparse import SparseOps
from panscope.training.schedule import TrainingConfig

_MATRICES = ("W_enc", "W_dec")
_CLIP_EPSILON = 1e-6
"""What torch.nn.utils.clip_grad_norm_ adds to a norm before dividing by it."""


class Optimiser:
    """Updates a coder in place; `scaled` lets float16 scale the loss."""

    def __init__(self, coder: Coder, config: TrainingConfig, *, scaled: bool = True) -> None:
        self._coder = coder
        self._config = config
        self._learned = {name: p for name, p in coder.named_parameters() if p.requires_grad}
        self._adam = torch.optim.Adam(
            self._learned.values(), lr=config.learning_rate, betas=config.adam_betas, eps=config.adam_eps, fused=True
        )
        device = coder.W_enc.device.type
        self._scaler = torch.amp.GradScaler(device, enabled=scaled and config.precision == "float16")
        self._average: dict[str, Tensor] = {}
        if config.average_decay is not None:
            self._average = {name: torch.zeros_like(parameter) for name, parameter in self._learned.items()}
        self._steps = 0

    def zero_grad(self) -> None:
        """Begin a step, or begin it anew."""
        self._adam.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, of all of a step or of a part of its rows."""
        with record_function("panscope::backward"):
            self._scaler.scale(loss).backward()

    def step(self, loss: Tensor, learning_rate: float, sparse: SparseOps | None = None) -> None:
        """One update along the gradient accumulated since `zero_grad`, by `sparse` where that computed it.

        `loss` [] is that of the step: nothing changes where it is not finite. float16 skips the update where the scaled
        gradient overflowed.
        """
        self._adam.param_groups[0]["lr"] = learning_rate
        with record_function("panscope::update"):
            self._update(torch.isfinite(loss.detach()), learning_rate, sparse)

    def _update(self, ok: Tensor, learning_rate: float, sparse: SparseOps | None) -> None:
        if sparse is None:
            self._dense(ok)
        else:
            self._sparse(sparse, ok, learning_rate)
        self._steps += 1
        self._follow()

    def _dense(self, ok: Tensor) -> None:
        self._scaler.unscale_(self._adam)
        self._coder.project_gradient()
        if self._config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._learned.values(), self._config.clip_norm)
        if not self._scaler.is_enabled():
            self._leave_alone_unless(ok)
        self._scaler.step(self._adam)
        self._scaler.update()
        self._coder.constrain()

    @torch.no_grad()
    def _sparse(self, sparse: SparseOps, ok: Tensor, learning_rate: float) -> None:
        """The two matrices by kernels, the rest by torch's Adam."""
        coder, unit = self._coder, self._coder.config.decoder_norm == "unit"
        gradients = {name: sparse.gradient(self._learned[name]) for name in _MATRICES}
        scale = self._clipped(sparse, gradients, unit)
        self._leave_alone_unless(ok)
        self._adam.step()
        coder.keep_positive()
        finishes = {
            "W_enc": Finish(screen=sparse.screen(coder.W_enc)),
            "W_dec": Finish(project=unit, unit=unit, norms=sparse.cached_norms),
        }
        for name, finish in finishes.items():
            state = self._moments(name)
            state["step"] += 1
            beta1, beta2 = self._config.adam_betas
            adam = AdamStep(
                learning_rate, beta1, beta2, self._config.adam_eps, step=self._steps + 1, scale=scale, ok=ok
            )
            W = self._learned[name].detach()
            sparse.kernels.update(W, state["exp_avg"], state["exp_avg_sq"], gradients[name], adam, finish)

    def _clipped(self, sparse: SparseOps, gradients: dict[str, Gradient], unit: bool) -> Tensor:
        """[] what the matrices' gradients are to be multiplied by; the others' are multiplied here."""
        one = self._coder.W_enc.new_ones(())
        if self._config.clip_norm is None:
            return one
        small = [p.grad for p in self._learned.values() if p.grad is not None]
        squares = [gradient.double().square().sum() for gradient in small]
        for name, gradient in gradients.items():
            project = unit and name == "W_dec"
            squares.append(sparse.kernels.squared_norm(self._learned[name].detach(), gradient, project))
        norm = torch.stack(squares).sum().sqrt()
        scale = (self._config.clip_norm / (norm + _CLIP_EPSILON)).clamp(max=1).to(one)
        for gradient in small:
            gradient.mul_(scale)
        return scale

    def _leave_alone_unless(self, ok: Tensor) -> None:
        """Tell torch's Adam to skip the step, on the device; this is how a GradScaler tells it."""
        self._adam.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
        self._adam.found_inf = (~ok).float()  # pyright: ignore[reportAttributeAccessIssue]

    def _moments(self, name: str) -> dict[str, Tensor]:
        """Adam's state of one matrix, made at its first sparse step as torch makes it."""
        parameter = self._learned[name]
        if not self._adam.state[parameter]:
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self._adam.state[parameter]

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

    def drop_moments(self) -> None:
        """Free Adam's moments and the gradients; no step can follow."""
        self._adam.zero_grad(set_to_none=True)
        self._adam.state.clear()

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
