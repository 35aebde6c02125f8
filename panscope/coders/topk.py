"""TopK coders: the K largest ReLU pre-activations of a row are its code (Gao et al. 2024).

`selection = "value"` ranks latents by their activation and goes with a unit decoder. `selection = "decoder_norm"` is
Llama Scope's Eq. 5: rank by activation times the norm of the decoder vector, and leave the norms free.

Shape letters: B rows, D input width, E output width, F latents, K active latents a row.
"""

from typing import Literal, Self

from pydantic import model_validator
from torch import Tensor

from panscope.coders.base import Coder, CoderConfig, Objective, squared_error
from panscope.kernels import reference
from panscope.types import Latents


class TopKConfig(CoderConfig):
    """A TopK coder; `sparsity` is K."""

    architecture: Literal["topk"] = "topk"
    selection: Literal["value", "decoder_norm"] = "value"
    """Rank latents by activation, or by activation times decoder norm."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.sparsity != int(self.sparsity):
            raise ValueError(f"sparsity (K) {self.sparsity:g} is not a whole number: a TopK coder keeps K latents")
        if self.sparsity > self.width:
            raise ValueError(
                f"sparsity (K) {self.sparsity:g} is above the width {self.width}: give a smaller K or a larger width"
            )
        return self


class TopKCoder(Coder):
    """At most K active latents a row."""

    config: TopKConfig

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> K codes a row."""
        return self._select(self.preactivations(x), int(self.config.sparsity))

    def objective(self, x: Tensor, y: Tensor, sparsity: float) -> Objective:
        """|y - y_hat|^2, mean over rows, with round(sparsity) latents kept."""
        latents = self._select(self.preactivations(x), max(1, round(sparsity)))
        y_hat = self.decode(latents)
        return Objective(squared_error(y_hat, y), latents, y_hat)

    def _select(self, pre: Tensor, k: int) -> Latents:
        weights = self.W_dec.detach().norm(dim=1) if self.config.selection == "decoder_norm" else None
        values, indices = reference.topk(pre, min(k, self.config.width), weights)
        return Latents(values, self.config.width, indices)
