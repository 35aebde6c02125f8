"""TopK coders: the K largest ReLU pre-activations of a row are its code (Gao et al. 2024).

`selection = "value"` ranks latents by their activation and goes with a unit decoder. `selection = "decoder_norm"` is
Llama Scope's Eq. 5: rank by activation times the norm of the decoder vector, and leave the norms free.

Gao et al. add AuxK against dead latents, and Multi-TopK: the loss at K plus a share of the loss at 4 K, so that a coder
can be used with more latents than it was trained with.

Shape letters: B rows, D input width, E output width, F latents, K active latents a row.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from panscope.coders.auxk import AuxKConfig, auxiliary
from panscope.coders.base import Coder, Objective
from panscope.kernels import reference
from panscope.ops.base import Ops, Rows
from panscope.types import Latents


class SelectingConfig(AuxKConfig):
    """What TopK and BatchTopK share; `sparsity` is K."""

    selects_k: ClassVar[bool] = True

    selection: Literal["value", "decoder_norm"] = "value"
    """Rank latents by activation, or by activation times decoder norm."""

    @property
    def by_norm(self) -> bool:
        """Whether the decoder's norms rank too."""
        return self.selection == "decoder_norm"

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

    keeps_k_a_row: ClassVar[bool] = True

    architecture: Literal["topk"] = "topk"
    multi_coefficient: float = Field(default=0.0, ge=0)
    """Multi-TopK: what the loss at `multi_factor` K counts; 0 leaves it out. Gao et al.: 1/8."""
    multi_factor: int = Field(default=4, gt=1)
    """How many times K the second loss keeps."""

    def codes_of_a_step(self, active: float) -> tuple[float, ...]:
        """Multi-TopK reconstructs once more, from `multi_factor` times as many codes."""
        return (active, min(self.width, active * self.multi_factor)) if self.multi_coefficient else (active,)

    def why_not_jumprelu(self) -> str:
        """A threshold on pre-activations chooses as TopK does where decoder norms do not rank otherwise."""
        if self.sparsity >= self.width:
            return f"sparsity (K) {self.sparsity:g} is not below the width {self.width}: lower K"
        if self.selection == "value" and self.decoder_norm == "free":
            return "decoder_norm is 'free' with selection 'value': set decoder_norm 'unit' or selection 'decoder_norm'"
        return ""


class TopKCoder(Coder):
    """At most K active latents a row."""

    config: TopKConfig

    def encode(self, x: Tensor) -> Latents:
        """[B, D] -> K codes a row."""
        norms = self.W_dec.norm(dim=1) if self.config.by_norm else None
        values, indices = reference.topk(self.preactivations(x), int(self.config.sparsity), norms)
        return Latents(values, self.config.width, indices)

    def objective(self, rows: Rows, sparsity: float, ops: Ops) -> Objective:
        """The reconstruction loss with round(sparsity) latents kept, and what is switched on of Multi-TopK and AuxK."""
        config, k = self.config, max(1, round(sparsity))
        norms = ops.norms(self.W_dec).detach() if config.by_norm else None
        if not config.multi_coefficient:
            latents = ops.topk(self.encoder(), rows, min(k, config.width), norms)
            found = self.reconstruction(latents, rows, ops)
            loss = found.loss
        else:
            more = ops.topk(self.encoder(), rows, min(config.multi_factor * k, config.width), norms)
            latents = best(more, min(k, config.width), norms)
            found = self.reconstruction(latents, rows, ops)
            loss = found.loss + config.multi_coefficient * self.reconstruction(more, rows, ops).loss
        loss = loss + auxiliary(self, config, latents, found.y_hat, rows, ops)
        return Objective(loss, latents, found.y_hat, found.errors)


def best(codes: Latents, k: int, norms: Tensor | None) -> Latents:
    """The k places of each row of even codes with the largest value, or value * norms."""
    assert codes.indices is not None
    scores = codes.values.detach() if norms is None else codes.values.detach() * codes.each(norms)
    places = scores.topk(k, dim=1, sorted=False).indices
    return Latents(codes.values.gather(1, places), codes.width, codes.indices.gather(1, places))
