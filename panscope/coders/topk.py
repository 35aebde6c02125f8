"""TopK coders: the K largest ReLU pre-activations of a row are its code (Gao et al. 2024).

`selection = "value"` ranks latents by their activation and goes with a unit decoder. `selection = "decoder_norm"` is
Llama Scope's Eq. 5: rank by activation times the norm of the decoder vector, and leave the norms free.

Gao et al. add AuxK against dead latents, and Multi-TopK: the loss at K plus a share of the loss at 4 K, so that a coder
can be used with more latents than it was trained with.

Shape letters: B rows, D input width, E output width, F latents, K active latents a row.
"""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from panscope.coders.auxk import AuxKConfig, auxiliary
from panscope.coders.base import Coder, Objective, Rows
from panscope.kernels import reference
from panscope.types import Latents


class SelectingConfig(AuxKConfig):
    """What TopK and BatchTopK share; `sparsity` is K."""

    selection: Literal["value", "decoder_norm"] = "value"
    """Rank latents by activation, or by activation times decoder norm."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.sparsity != int(self.sparsity):
            raise ValueError(
                f"sparsity (K) {self.sparsity:g} is not a whole number: {self.architecture} keeps K latents"
            )
        if self.sparsity > self.width:
            raise ValueError(
                f"sparsity (K) {self.sparsity:g} is above the width {self.width}: give a smaller K or a larger width"
            )
        return self


class TopKConfig(SelectingConfig):
    """A TopK coder."""

    architecture: Literal["topk"] = "topk"
    multi_coefficient: float = Field(default=0.0, ge=0)
    """Multi-TopK: what the loss at `multi_factor` K counts; 0 leaves it out. Gao et al.: 1/8."""
    multi_factor: int = Field(default=4, gt=1)
    """How many times K the second loss keeps."""


class TopKCoder(Coder):
    """At most K active latents a row."""

    config: TopKConfig

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> K codes a row."""
        return self._select(self.preactivations(x), int(self.config.sparsity))

    def objective(self, rows: Rows, sparsity: float) -> Objective:
        """The reconstruction loss with round(sparsity) latents kept, and what is switched on of Multi-TopK and AuxK."""
        config, pre, k = self.config, self.preactivations(rows.x), max(1, round(sparsity))
        latents = self._select(pre, k)
        loss, y_hat = self.reconstruction(latents, rows)
        if config.multi_coefficient:
            more, _ = self.reconstruction(self._select(pre, config.multi_factor * k), rows)
            loss = loss + config.multi_coefficient * more
        loss = loss + auxiliary(self, config, pre, latents, y_hat, rows)
        return Objective(loss, latents, y_hat)

    def _select(self, pre: Tensor, k: int) -> Latents:
        norms = selection_norms(self, self.config.selection)
        values, indices = reference.topk(pre, min(k, self.config.width), norms)
        return Latents(values, self.config.width, indices)


def selection_norms(coder: Coder, selection: str) -> Tensor | None:
    """[F] what pre-activations are multiplied by before they are ranked, without gradient; None for 1."""
    return coder.W_dec.detach().norm(dim=1) if selection == "decoder_norm" else None
