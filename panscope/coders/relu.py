"""The ReLU coder with an L1 penalty weighted by the decoder norm (Anthropic, April 2024).

f = ReLU(W_enc x + b_enc); loss = |y - y_hat|^2 + lambda * sum_i f_i |W_dec_i|. With a unit decoder the weights are 1
and it is the plain L1 of Bricken et al. and Cunningham et al.

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from panscope.coders.base import Coder, CoderConfig, Objective
from panscope.ops.base import Ops, Rows
from panscope.types import Latents


class ReLUConfig(CoderConfig):
    """A ReLU coder; `sparsity` is lambda."""

    default_recipe: ClassVar[str] = "anthropic_relu"
    largest_coefficient: ClassVar[tuple[float, str] | None] = (10.0, "Anthropic, April 2024: 2 to 10")

    architecture: Literal["relu"] = "relu"


class ReLUCoder(Coder):
    """ReLU codes under an L1 penalty."""

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> dense codes."""
        return Latents(torch.relu(self.preactivations(x)), self.config.width)

    def objective(self, rows: Rows, sparsity: float, ops: Ops) -> Objective:
        """The reconstruction loss + sparsity * sum_i f_i |W_dec_i|, mean over rows."""
        pre = ops.above(self.encoder(), rows, torch.zeros_like(self.b_enc))
        latents = pre.with_values(torch.relu(pre.values))
        found = self.reconstruction(latents, rows, ops)
        penalty = l1_penalty(latents, ops.norms(self.W_dec), rows)
        return Objective(found.loss + sparsity * penalty, latents, found.y_hat, found.errors)


def l1_penalty(codes: Latents, norms: Tensor, rows: Rows) -> Tensor:
    """[] sum_i f_i |W_dec_i| for decoder norms [F], mean over the rows of the batch."""
    return rows.batch.mean(codes.over_latents(codes.values * codes.each(norms)))
