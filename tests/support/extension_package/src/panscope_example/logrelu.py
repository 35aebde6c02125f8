"""ReLU coders under a logarithmic penalty: sum_i log(1 + f_i / scale), which costs large codes less than L1 does.

Shape letters: B rows, D input width, F latents.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from panscope.coders.base import Coder, CoderConfig, Objective
from panscope.ops.base import Ops, Rows
from panscope.types import Latents


class LogReLUConfig(CoderConfig):
    """A ReLU coder; `sparsity` is the penalty's coefficient."""

    architecture: Literal["logrelu"] = "logrelu"
    scale: float = Field(default=0.1, gt=0)
    """The code from which on the penalty grows slowly."""


class LogReLUCoder(Coder):
    """ReLU codes under a logarithmic penalty."""

    config: LogReLUConfig

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> dense codes."""
        return Latents(torch.relu(self.preactivations(x)), self.config.width)

    def objective(self, rows: Rows, sparsity: float, ops: Ops) -> Objective:
        """The reconstruction loss + sparsity * sum_i log(1 + f_i / scale), mean over rows."""
        pre = ops.above(self.encoder(), rows, torch.zeros_like(self.b_enc))
        latents = pre.with_values(torch.relu(pre.values))
        found = self.reconstruction(latents, rows, ops)
        penalty = rows.batch.mean(latents.over_latents((latents.values / self.config.scale).log1p()))
        return Objective(found.loss + sparsity * penalty, latents, found.y_hat, found.errors)


LOGRELU = (LogReLUConfig, LogReLUCoder)
