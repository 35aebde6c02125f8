"""BatchTopK coders: the B K largest activations of a batch of B rows are its codes, so rows share K unevenly.

A single row cannot be encoded like that, so the least activation that a training batch kept is averaged over steps, and
that running threshold takes the place of the batch: the coder is then a JumpReLU coder (Bussmann et al. 2024).

Shape letters: B rows, D input width, E output width, F latents, K active latents a row on average.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from panscope.coders.auxk import auxiliary
from panscope.coders.base import Coder, Objective
from panscope.coders.topk import SelectingConfig
from panscope.ops.base import Ops, Rows
from panscope.types import Latents

_UNREACHABLE = 1e30
"""The threshold of a latent whose decoder vector is zero: ranked by its norm, it is never chosen."""


class BatchTopKConfig(SelectingConfig):
    """A BatchTopK coder."""

    architecture: Literal["batchtopk", "matryoshka"] = "batchtopk"
    threshold_window: int = Field(default=1000, gt=0)
    """Steps over which the running threshold averages: it decays by 1 - 1 / window a step."""


class BatchTopKCoder(Coder):
    """K active latents a row on average; `threshold` [] is what `encode` cuts at, 0 before the first step."""

    config: BatchTopKConfig
    threshold: Tensor

    def __init__(self, config: BatchTopKConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> dense codes: what exceeds the running threshold, whatever the other rows are."""
        pre = self.preactivations(x)
        return Latents(pre * (pre > self.thresholds()), self.config.width)

    def thresholds(self) -> Tensor:
        """[F] the running threshold as each latent's pre-activation meets it."""
        norms = self.W_dec.detach().norm(dim=1) if self.config.by_norm else None
        threshold = self.threshold.expand(self.config.width)
        return threshold if norms is None else (threshold / norms).nan_to_num(nan=0.0, posinf=_UNREACHABLE)

    def objective(self, rows: Rows, sparsity: float, ops: Ops) -> Objective:
        """The reconstruction loss with B round(sparsity) activations kept, and AuxK where it is switched on."""
        config, k = self.config, max(1, round(sparsity))
        norms = ops.norms(self.W_dec).detach() if config.by_norm else None
        latents, least = ops.batch_topk(self.encoder(), rows, k, norms, self.threshold)
        found = self.reconstruction(latents, rows, ops)
        loss = found.loss + auxiliary(self, config, latents, found.y_hat, rows, ops)
        return Objective(loss, latents, found.y_hat, found.errors, least)

    @torch.no_grad()
    def track(self, least: Tensor | None) -> None:
        """Move the running threshold towards the least activation this batch kept; the first batch sets it."""
        assert least is not None
        least = least.to(self.threshold)
        moved = self.threshold + (least - self.threshold) / self.config.threshold_window
        new = torch.where(self.threshold > 0, moved, least)
        self.threshold.copy_(torch.where(least.isfinite(), new, self.threshold))
