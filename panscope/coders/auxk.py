"""AuxK: an auxiliary loss that gives dead latents something to do (Gao et al. 2024, appendix A.2).

The error e = y - y_hat of the main reconstruction, cut off from its gradient, is reconstructed once more by the `auxk`
largest dead latents of each row; the loss is that reconstruction's error over the variance of e, as in their code and
in dictionary_learning's, so that `auxk_coefficient` does not depend on the size of the activations.

Shape letters: B rows, E output width, F latents.
"""

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from panscope.coders.base import Coder, CoderConfig, Rows, squared_error
from panscope.kernels import reference
from panscope.types import Latents


class AuxKConfig(CoderConfig):
    """What architectures with AuxK have."""

    auxk_coefficient: float = Field(default=0.0, ge=0)
    """What the auxiliary loss counts; 0 leaves it out. Gao et al.: 1/32."""
    auxk: int | None = Field(default=None, gt=0)
    """How many dead latents a row uses; left out, the power of two nearest to d_in / 2 (Gao et al.)."""
    auxk_bias: bool = False
    """Legacy: the Multi-Layer SAE's code adds b_dec to the error's reconstruction and takes the error's variance within
    each row."""

    @model_validator(mode="after")
    def _auxk_has_a_use(self) -> Self:
        if self.auxk_coefficient == 0 and (self.auxk is not None or self.auxk_bias):
            raise ValueError("auxk and auxk_bias need an auxk_coefficient above 0: set it, or leave them out")
        return self

    def auxk_latents(self) -> int:
        """How many dead latents a row uses."""
        nearest = 2 ** round(math.log2(max(2, self.d_in) / 2))
        return min(self.width, self.auxk or nearest)


def auxiliary(coder: Coder, config: AuxKConfig, pre: Tensor, latents: Latents, y_hat: Tensor, rows: Rows) -> Tensor:
    """[] what AuxK adds to the loss of a batch with pre-activations [B, F], codes and reconstruction y_hat [B, E].

    A latent that this very batch woke is dead no longer: both published codes update their counts first.
    """
    if not config.auxk_coefficient:
        return y_hat.new_zeros(())
    assert rows.dead is not None, "AuxK needs to know which latents are dead"
    dead = rows.dead & (latents.firings() == 0)
    error = (rows.y - y_hat).detach()
    still = Rows(rows.x, error, rows.weights, dead)
    return config.auxk_coefficient * auxk_loss(config, pre, coder.W_dec, coder.b_dec, still)


def auxk_loss(config: AuxKConfig, pre: Tensor, W_dec: Tensor, b_dec: Tensor, errors: Rows) -> Tensor:
    """[] the share of the error's variance that dead latents leave; 0 where none is dead or nothing varies.

    pre [B, F], W_dec [F, E], b_dec [E]; the targets of `errors` are the main path's error, without gradient.
    """
    error, dead = errors.y, errors.dead
    assert dead is not None
    assert not error.requires_grad, "the error must be cut off from the main path"
    values, indices = reference.topk(pre.masked_fill(~dead, -math.inf), config.auxk_latents())
    base = b_dec if config.auxk_bias else torch.zeros_like(b_dec)
    found = reference.decode(Latents(values, config.width, indices).dense(), W_dec, base)
    mean = error.mean(dim=1, keepdim=True) if config.auxk_bias else _weighted_mean(error, errors.weights)
    variance = squared_error(mean, errors)
    divisor = torch.where((variance > 0) & dead.any(), variance, math.inf)
    return squared_error(found, errors) / divisor


def _weighted_mean(error: Tensor, weights: Tensor) -> Tensor:
    """[E]."""
    return (weights[:, None] * error).sum(dim=0) / weights.sum()
