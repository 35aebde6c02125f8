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
    """Defines correct results."""

    def __init__(self) -> None:
        self._fractions: list[Tensor | float] = []

    def begin(self) -> None:
        """Begin a step."""
        self._fractions.clear()

    def end_part(self) -> None:
        """Nothing: autograd adds up the gradients of the parts."""

    @property
    def active_fraction(self) -> float:
        """The share of all codes that the selections of this step need, the mean over its parts."""
        return sum(float(fraction) for fraction in self._fractions) / max(1, len(self._fractions))

    def topk(self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None) -> Latents:
        """See `Ops`."""
        values, indices = reference.topk(_preactivations(encoder, rows), k, norms)
        self._note(k / max(1, len(encoder.W)))
        return Latents(values, len(encoder.W), indices)

    def batch_topk(
        self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None, guess: Tensor
    ) -> tuple[Latents, Tensor]:
        """See `Ops`; does not use `guess`."""
        pre, count = _preactivations(encoder, rows), k * rows.batch.size(len(rows.x))
        codes, least = reference.batch_topk(pre, count, norms, rows.batch.largest)
        self._note(k / max(1, len(encoder.W)))
        return Latents(codes, len(encoder.W)), least

    def above(self, encoder: Encoder, rows: Rows, floor: Tensor) -> Latents:
        """See `Ops`; returns all pre-activations."""
        pre = _preactivations(encoder, rows)
        self._note((pre.detach() > floor).mean(dtype=torch.float32))
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

    def _note(self, fraction: Tensor | float) -> None:
        self._fractions.append(fraction)


def _preactivations(encoder: Encoder, rows: Rows) -> Tensor:
    """Pre-activations [B, F]."""
    with record_function("panscope::encode"):
        x = rows.x if encoder.centre is None else rows.x - encoder.centre
        return reference.preactivations(x, encoder.W, encoder.b)
