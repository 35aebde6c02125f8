"""Every verb by the reference and autograd: each latent of each row is computed, active or not.

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
    """The definition of correct; `touched` is the share of all places that the last selection would need."""

    def __init__(self) -> None:
        self.touched: Tensor | float = 0.0

    def topk(self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None) -> Latents:
        """See `Ops`."""
        values, indices = reference.topk(_preactivations(encoder, rows), k, norms)
        self.touched = k / max(1, len(encoder.W))
        return Latents(values, len(encoder.W), indices)

    def batch_topk(
        self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None, guess: Tensor
    ) -> tuple[Latents, Tensor]:
        """See `Ops`; needs no guess."""
        codes, least = reference.batch_topk(_preactivations(encoder, rows), k, norms)
        self.touched = k / max(1, len(encoder.W))
        return Latents(codes, len(encoder.W)), least.detach()

    def above(self, encoder: Encoder, rows: Rows, floor: Tensor) -> Latents:
        """See `Ops`; every place is there."""
        pre = _preactivations(encoder, rows)
        self.touched = (pre.detach() > floor).mean(dtype=torch.float32)
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
    """[B, F]."""
    with record_function("panscope::encode"):
        x = rows.x if encoder.centre is None else rows.x - encoder.centre
        return reference.preactivations(x, encoder.W, encoder.b)
