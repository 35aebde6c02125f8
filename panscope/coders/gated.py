"""Gated coders: one path decides which latents are active, another how large they are (Rajamanoharan et al. 2024a).

pi = W_enc x + b_enc is the gate; f = H(pi) * ReLU(exp(r_mag) W_enc x + b_mag). The loss is the reconstruction from f,
an L1 penalty on ReLU(pi), and the reconstruction from ReLU(pi) through a frozen copy of the decoder, by which alone the
gate learns. With free decoder norms the penalty weighs each latent by its norm ("RI-L1", their appendix), which gets no
gradient from it: it would shrink, r_mag would make up for it, and the penalty would come to nothing.

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from panscope.coders.base import Coder, CoderConfig, Objective
from panscope.coders.relu import l1_penalty
from panscope.kernels import reference
from panscope.ops.base import Ops, Rows
from panscope.types import Latents


class GatedConfig(CoderConfig):
    """A Gated coder; `sparsity` is lambda."""

    frozen_decodes: ClassVar[int] = 1
    largest_coefficient: ClassVar[tuple[float, str] | None] = (0.08, "SAEBench: 0.012 to 0.08")

    architecture: Literal["gated"] = "gated"


class GatedCoder(Coder):
    """Gated codes: parameters r_mag [F] and b_mag [F] beside those of every coder; b_enc is the gate's bias."""

    in_code_units = ("b_enc", "b_mag")

    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.zeros(config.width))
        self.b_mag = nn.Parameter(torch.zeros(config.width))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> "GatedCoder":
        """As every coder, with both paths alike."""
        self.r_mag.zero_()
        self.b_mag.zero_()
        super().initialise(generator)
        return self

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> dense codes."""
        return self._codes(Latents(self.preactivations(x), self.config.width))

    def objective(self, rows: Rows, sparsity: float, ops: Ops) -> Objective:
        """Reconstruction + sparsity * L1 of the gate + reconstruction from the gate through the frozen decoder."""
        pre = ops.above(self.encoder(), rows, torch.zeros_like(self.b_enc))
        latents = self._codes(pre)
        found = self.reconstruction(latents, rows, ops)
        gate = pre.with_values(torch.relu(pre.values))
        frozen = self.base(rows.x).detach()
        from_gate = ops.reconstruct(gate, self.W_dec.detach(), frozen, rows, [self.config.width])
        loss = found.loss + sparsity * l1_penalty(gate, ops.norms(self.W_dec).detach(), rows) + from_gate.loss
        return Objective(loss, latents, found.y_hat, found.errors)

    def _codes(self, pre: Latents) -> Latents:
        b_gate, r_mag, b_mag = (pre.each(parameter) for parameter in (self.b_enc, self.r_mag, self.b_mag))
        return pre.with_values(reference.gated(pre.values, b_gate, r_mag, b_mag))
