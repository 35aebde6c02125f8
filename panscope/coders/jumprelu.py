"""JumpReLU coders: a latent is active where its pre-activation exceeds a threshold of its own (Gemma Scope, 2.2).

f = pre * H(pre - theta); loss = |y - y_hat|^2 + lambda * |f|_0. Both parts reach theta through straight-through
estimators with a rectangle kernel of width `bandwidth` on the pre-activation (Rajamanoharan et al. 2024b).

With `target_l0` = L0*, the penalty is lambda * target_factor * (|f|_0 / L0* - 1)^2 in place of lambda * |f|_0, so that
L0 is asked for and not found by a search (same paper; Gemma Scope 2). `frequency_penalty` adds
lambda * frequency_penalty * sum_i p_i^2 / frequency_limit, p_i the share of rows on which latent i is active: little
for rare latents, much for those above the limit (Google DeepMind's interpretability team, progress update of March
2025).

The trained parameter is theta itself, kept above 0. The 2024b paper's code trains log theta; Adam then moves theta by a
share of itself a step, and from 0.001 a run of some thousand steps does not arrive (measured: docs/LOG.md).

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from panscope.coders.base import Coder, CoderConfig, Objective
from panscope.kernels import reference
from panscope.ops.base import Ops, Rows
from panscope.ops.batch import BatchReductions
from panscope.types import Latents


class JumpReLUConfig(CoderConfig):
    """A JumpReLU coder; `sparsity` is lambda, the coefficient of the penalty."""

    has_estimator_window: ClassVar[bool] = True
    largest_coefficient: ClassVar[tuple[float, str] | None] = (
        0.02,
        "Gemma Scope: 1e-4 to 2e-3 in its suites here; gemma_scope_2: 0.02",
    )

    architecture: Literal["jumprelu"] = "jumprelu"
    bandwidth: float = Field(default=0.001, gt=0)
    """Width of the estimator's rectangle, in units of the normalised input."""
    threshold_init: float = Field(default=0.001, gt=0)
    """Every latent's threshold at the start."""
    target_l0: float | None = Field(default=None, gt=0)
    """The L0 to reach; left out, the penalty is linear in L0."""
    target_factor: float = Field(default=1.0, gt=0)
    """Factor of the squared relative distance: 1 in SAEBench's suite, target_l0 / 2 in Gemma Scope 2."""
    target_of: Literal["batch", "row"] = "batch"
    """Square the distance of the batch's mean L0 (SAEBench), or of each row's L0 (the papers)."""
    frequency_penalty: float = Field(default=0.0, ge=0)
    """What the penalty on frequent latents counts; 0 leaves it out."""
    frequency_limit: float = Field(default=0.1, gt=0, le=1)
    """The frequency at which that penalty, at a weight of 1, equals the linear one."""

    @model_validator(mode="after")
    def _target_fits(self) -> Self:
        if self.target_l0 is not None and self.target_l0 >= self.width:
            raise ValueError(f"target_l0 {self.target_l0:g} is not below the width {self.width}: lower it")
        return self

    def sparsity_aim(self) -> tuple[Literal["K", "L0", "lambda"], float]:
        """`target_l0` where there is one."""
        return ("lambda", self.sparsity) if self.target_l0 is None else ("L0", self.target_l0)


class JumpReLUCoder(Coder):
    """Thresholded codes under an L0 penalty."""

    config: JumpReLUConfig
    positive = ("threshold",)
    in_code_units = ("b_enc", "threshold")

    def __init__(self, config: JumpReLUConfig) -> None:
        super().__init__(config)
        self.threshold = nn.Parameter(torch.full((config.width,), config.threshold_init))

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> dense codes."""
        pre = self.preactivations(x)
        return Latents(reference.jumprelu(pre, self.threshold, self.config.bandwidth), self.config.width)

    def objective(self, rows: Rows, sparsity: float, ops: Ops) -> Objective:
        """The reconstruction loss + sparsity * the penalty on L0."""
        bandwidth = self.config.bandwidth
        pre = ops.above(self.encoder(), rows, self.threshold - bandwidth / 2)
        threshold = pre.each(self.threshold)
        latents = pre.with_values(reference.jumprelu(pre.values, threshold, bandwidth))
        found = self.reconstruction(latents, rows, ops)
        steps = pre.with_values(reference.step(pre.values, threshold, bandwidth))
        return Objective(found.loss + sparsity * self._penalty(steps, rows.batch), latents, found.y_hat, found.errors)

    def _penalty(self, steps: Latents, batch: BatchReductions) -> Tensor:
        """[] from the steps, 1 where a latent is active."""
        config, l0 = self.config, steps.l1()
        if config.target_l0 is None:
            penalty = batch.mean(l0)
        elif config.target_of == "row":
            penalty = config.target_factor * batch.mean((l0 / config.target_l0 - 1).square())
        else:
            (mean_l0,) = batch.totals(batch.mean(l0))
            penalty = batch.once(config.target_factor * (mean_l0 / config.target_l0 - 1).square())
        if config.frequency_penalty:
            (frequencies,) = batch.totals(steps.over_rows(steps.values) / batch.size(len(steps)))
            frequent = config.frequency_penalty * frequencies.square().sum() / config.frequency_limit
            penalty = penalty + batch.once(frequent)
        return penalty
