"""JumpReLU coders: a latent is active where its pre-activation exceeds a threshold of its own (Gemma Scope, 2.2).

f = pre * H(pre - theta); loss = |y - y_hat|^2 + lambda * |f|_0. Both parts reach theta through straight-through
estimators with a rectangle kernel of width `bandwidth` on the pre-activation (Rajamanoharan et al. 2024b).

The trained parameter is theta itself, kept above 0. That paper's code trains log theta; Adam then moves theta by a
share of itself a step, and from 0.001 a run of some thousand steps does not arrive (measured: docs/LOG.md).

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from panscope.coders.base import Coder, CoderConfig, Objective, squared_error
from panscope.kernels import reference
from panscope.types import Latents


class JumpReLUConfig(CoderConfig):
    """A JumpReLU coder; `sparsity` is lambda, the price of one active latent."""

    architecture: Literal["jumprelu"] = "jumprelu"
    bandwidth: float = Field(default=0.001, gt=0)
    """Width of the estimator's rectangle, in units of the normalised input."""
    threshold_init: float = Field(default=0.001, gt=0)
    """Every latent's threshold at the start."""


class JumpReLUCoder(Coder):
    """Thresholded codes under an L0 penalty."""

    config: JumpReLUConfig
    positive = ("threshold",)

    def __init__(self, config: JumpReLUConfig) -> None:
        super().__init__(config)
        self.threshold = nn.Parameter(torch.full((config.width,), config.threshold_init))

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> dense codes."""
        pre = self.preactivations(x)
        return Latents(reference.jumprelu(pre, self.threshold, self.config.bandwidth), self.config.width)

    def objective(self, x: Tensor, y: Tensor, sparsity: float) -> Objective:
        """|y - y_hat|^2 + sparsity * |f|_0, mean over rows."""
        pre, threshold = self.preactivations(x), self.threshold
        latents = Latents(reference.jumprelu(pre, threshold, self.config.bandwidth), self.config.width)
        y_hat = self.decode(latents)
        l0 = reference.step(pre, threshold, self.config.bandwidth).sum(dim=1).mean()
        return Objective(squared_error(y_hat, y) + sparsity * l0, latents, y_hat)
