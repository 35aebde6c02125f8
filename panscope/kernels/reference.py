"""Every operation of a coder in plain torch: the definition of correct results.

Short, dense, and differentiated by autograd. Faster implementations are tested against this file, values and gradients.

Shape letters: B rows, D input width, E output width, F latents, K codes per row.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def preactivations(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """W_enc x + b_enc: x [B, D], W_enc [F, D], b_enc [F] -> [B, F]."""
    return torch.addmm(b_enc, x, W_enc.T)


def decode(codes: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
    """W_dec^T f + b_dec: codes [B, F], W_dec [F, E], b_dec [E] -> [B, E]."""
    return torch.addmm(b_dec, codes, W_dec)


def topk(pre: Tensor, k: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """ReLU(pre) and indices, both [B, K], of the K largest ReLU(pre) * weights of every row.

    `weights` [F] are the decoder norms of Llama Scope's Eq. 5, or 1; they affect the selection, not the values. Rows
    with fewer than K positive pre-activations are padded with zeros.
    """
    positive = torch.relu(pre)
    scores = positive if weights is None else positive * weights
    best, indices = scores.topk(k, dim=1, sorted=False)
    return positive.gather(1, indices) * (best > 0), indices


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the `count` largest of the scores [N] that are positive, and the least [] of these, else infinity."""
    best, indices = scores.topk(min(count, len(scores)), sorted=False)
    return indices[best > 0], least_positive(best)


def least_positive(scores: Tensor) -> Tensor:
    """[] the least positive score of [N], infinite if there is none."""
    return scores.masked_fill(scores <= 0, math.inf).min() if len(scores) else scores.new_tensor(math.inf)


def batch_topk(
    pre: Tensor,
    count: int,
    weights: Tensor | None = None,
    best: Callable[[Tensor, int], tuple[Tensor, Tensor]] = largest,
) -> tuple[Tensor, Tensor]:
    """ReLU(pre) [B, F] if its score is among the `count` largest of the batch, else 0, and the least score [] kept.

    `count` is B K (Bussmann et al. 2024). Scores are ReLU(pre) * weights [F], as in `topk`. The least score is infinite
    if none is positive. `best` selects, as `largest` does, where these rows are a part of the batch.
    """
    positive = torch.relu(pre)
    scores = positive.detach() if weights is None else positive.detach() * weights
    indices, least = best(scores.flatten(), count)
    kept = torch.zeros_like(scores, dtype=torch.bool).flatten().index_fill(0, indices, True).view_as(scores)
    return positive * kept, least


def gated(pre: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> Tensor:
    """H(pre) * ReLU(exp(r_mag) (pre - b_gate) + b_mag): pre [B, F] with its bias b_gate [F] -> [B, F].

    The gate passes no gradient (Rajamanoharan et al. 2024a, Eq. 6 and 7: the two encoders share their directions).
    """
    return (pre > 0) * torch.relu(r_mag.exp() * (pre - b_gate) + b_mag)


def jumprelu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """pre * H(pre - threshold) with a strict H (Gemma Scope Eq. 3): [B, F], threshold [F] -> [B, F]; or [N] both.

    The gradient of `threshold` is the straight-through estimate of Rajamanoharan et al. 2024b: -threshold / bandwidth
    where |pre - threshold| < bandwidth / 2, else 0.
    """
    return _JumpReLU.apply(pre, threshold, bandwidth)


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """H(pre - threshold): [B, F] in the threshold's precision; summed over F it is the L0 of the JumpReLU code.

    The gradient of `threshold` is -1 / bandwidth inside the same window; `pre` has none, as in the paper.
    """
    return _Step.apply(pre, threshold, bandwidth)


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """[B, F] bool: the rectangle kernel, |pre - threshold| < bandwidth / 2."""
    return (pre - threshold).abs() < bandwidth / 2


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        pre, threshold, bandwidth = inputs
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors
        inside = _window(pre, threshold, ctx.bandwidth)
        for_threshold = (gradient * inside).sum_to_size(threshold.shape) * (-threshold / ctx.bandwidth)
        return gradient * (pre > threshold), for_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        pre, threshold, bandwidth = inputs
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(threshold.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        pre, threshold = ctx.saved_tensors
        inside = _window(pre, threshold, ctx.bandwidth)
        return None, (gradient * inside).sum_to_size(threshold.shape) * (-1 / ctx.bandwidth), None
