"""AuxK: an auxiliary loss that gives dead latents something to do (Gao et al. 2024, appendix A.2).

The error e = y - y_hat of the main reconstruction, cut off from its gradient, is reconstructed once more by the `auxk`
largest dead latents of each row; the loss is that reconstruction's error over the variance of e, as in their code and
in dictionary_learning's, so that `auxk_coefficient` does not depend on the size of the activations.

Shape letters: B rows, E output width, F latents.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from panscope.coders.base import Coder, CoderConfig, squared_error
from panscope.kernels import reference
from panscope.ops.base import Encoder, Ops, Rows
from panscope.ops.dense import DenseOps
from panscope.types import Latents

AUXK_CODES = 1 << 26
"""Codes of dead latents that are in memory at a time."""


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


def auxiliary(coder: Coder, config: AuxKConfig, latents: Latents, y_hat: Tensor, rows: Rows, ops: Ops) -> Tensor:
    """[] what AuxK adds to the loss of a batch with codes `latents` and reconstruction y_hat [B, E].

    Only the dead latents are computed. A latent that this very batch woke is dead no longer: both published codes
    update their counts first.
    """
    if not config.auxk_coefficient:
        return y_hat.new_zeros(())
    assert rows.dead is not None, "AuxK needs to know which latents are dead"
    errors = Rows(rows.x, (rows.y - y_hat).detach(), rows.weights, batch=rows.batch)
    firings, variance = _of_batch(config, latents.firings(), errors)
    dead = (rows.dead & (firings == 0)).nonzero().squeeze(1)
    encoder = coder.encoder()
    few = Encoder(ops.take(encoder.W, dead), encoder.b[dead], encoder.centre)
    base = coder.b_dec if config.auxk_bias else torch.zeros_like(coder.b_dec)
    return config.auxk_coefficient * auxk_loss(config, few, ops.take(coder.W_dec, dead), base, errors, variance)


def _of_batch(config: AuxKConfig, firings: Tensor, errors: Rows) -> tuple[Tensor, Tensor]:
    """How often each latent is active in the batch [F], given `firings` of these rows, and the errors' variance []."""
    error, weights, batch = errors.y, errors.weights, errors.batch
    if config.auxk_bias:
        firings, variance = batch.totals(firings, squared_error(error.mean(dim=1, keepdim=True), errors))
        return firings, variance
    firings, total, weight = batch.totals(firings, (weights[:, None] * error).sum(dim=0), weights.sum())
    (variance,) = batch.totals(squared_error(total / weight, errors))
    return firings, variance


def auxk_loss(
    config: AuxKConfig, encoder: Encoder, W_dec: Tensor, base: Tensor, errors: Rows, variance: Tensor
) -> Tensor:
    """[] the share of the error's variance that dead latents leave; 0 where none is dead or nothing varies.

    `encoder` and W_dec [n, E] are those of the n dead latents; the targets of `errors` are the main path's error,
    without gradient, and `variance` [] is their weighted variance in the batch.
    """
    assert not errors.y.requires_grad, "the error must be cut off from the main path"
    k = min(config.auxk_latents(), len(W_dec))

    def squared(own: slice) -> Tensor:
        rows = Rows(errors.x[own], errors.y[own], errors.weights[own])
        codes = DenseOps().topk(encoder, rows, k, None).dense()
        return squared_error(reference.decode(codes, W_dec, base), rows)

    divisor = torch.where((variance > 0) & (len(W_dec) > 0), variance, math.inf)
    return _over_rows(squared, len(errors.x), max(1, AUXK_CODES // max(1, len(W_dec)))) / divisor


def _over_rows(squared: Callable[[slice], Tensor], rows: int, at_once: int) -> Tensor:
    """The sum of `squared` over slices of the rows; if there are several, their codes are computed again backward."""
    if rows <= at_once:
        return squared(slice(None))
    slices = [slice(first, first + at_once) for first in range(0, rows, at_once)]
    return torch.stack([checkpoint(squared, own, use_reentrant=False) for own in slices]).sum()
