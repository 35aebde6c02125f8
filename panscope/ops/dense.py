"""The operations implemented by the reference and autograd: every latent of every row is computed, active or not.

Shape letters: B rows, D input width, E output width, F latents.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from panscope.kernels import reference
from panscope.ops.base import Decoded, Encoder, Rows
from panscope.types import Latents


class DenseOps:
    """Defines correct results; `active_fraction` is the share of all B F codes that the last selection needs."""

    def __init__(self) -> None:
        self.active_fraction: Tensor | float = 0.0

    def topk(self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None) -> Latents:
        """See `Ops`."""
        values, indices = reference.topk(_preactivations(encoder, rows), k, norms)
        self.active_fraction = k / max(1, len(encoder.W))
        return Latents(values, len(encoder.W), indices)

    def batch_topk(
        self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None, guess: Tensor
    ) -> tuple[Latents, Tensor]:
        """See `Ops`; does not use `guess`."""
        codes, least = reference.batch_topk(_preactivations(encoder, rows), k, norms)
        self.active_fraction = k / max(1, len(encoder.W))
        return Latents(codes, len(encoder.W)), least.detach()

    def above(self, encoder: Encoder, rows: Rows, floor: Tensor) -> Latents:
        """See `Ops`; returns all pre-activations."""
        pre = _preactivations(encoder, rows)
        self.active_fraction = (pre.detach() > floor).mean(dtype=torch.float32)
        return Latents(pre, len(encoder.W))

    def reconstruct(self, codes: Latents, W_dec: Tensor, base: Tensor, rows: Rows, ends: Sequence[int]) -> Decoded:
        """See `Ops`."""
        with record_function("panscope::decode"):
            dense, y_hat, losses, start = codes.dense(), base, [], 0
            errors = rows.weights
            for end in ends:
                y_hat = reference.decode(dense[:, start:end], W_dec[start:end], y_hat)
                errors = (y_hat - rows.y).square().sum(dim=1)
                losses.append((rows.weights * errors).sum())
                start = end
            return Decoded(torch.stack(losses).mean(), y_hat, errors.detach())

    def norms(self, W_dec: Tensor) -> Tensor:
        """See `Ops`."""
        return W_dec.norm(dim=1)

    def take(self, W: Tensor, index: Tensor) -> Tensor:
        """See `Ops`."""
        return W[index]


def _preactivations(encoder: Encoder, rows: Rows) -> Tensor:
    """Pre-activations [B, F]."""
    with record_function("panscope::encode"):
        x = rows.x if encoder.centre is None else rows.x - encoder.centre
        return reference.preactivations(x, encoder.W, encoder.b)
