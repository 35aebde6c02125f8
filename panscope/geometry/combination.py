"""How much of a vector is a linear combination of a few others: whether a wide coder's latent is new or composed.

Llama Scope, section 4.6, "Wider SAEs do learn new features": a latent that is not in the span of the nearest vectors of
the narrow coder is not merely a combination of its features. Any vector is a combination of D others, so only a few are
used, and the same fit is made with random dictionaries of the same shape for comparison (`baselines.py`).

Shape letters: F latents, G latents of the other dictionary, D width, K vectors combined, R latents at a time.
"""

import torch
from torch import Tensor

from panscope.kernels.cosines import directions

_COMBINED = 16
_GATHERED = 1 << 23
"""Numbers gathered at a time: 64 MiB of float64."""
_RANK = 1e-10
"""Eigenvalues below this share of the largest count as zero; they occur if vectors are linearly dependent."""


def combined(width: int) -> int:
    """K: the number of vectors of D dimensions to combine; at most a quarter of D, since D vectors span everything."""
    return max(1, min(_COMBINED, width // 4))


def explained(rows: Tensor, others: Tensor, indices: Tensor) -> Tensor:
    """[F] float64: |p|^2 / |w|^2, p the least-squares fit to w, a row of `rows` [F, D], by rows of `others` [G, D].

    `indices` [F, K] are the rows of `others` to use for each row, -1 for none. The result is 0 for a row of zeros, or
    without vectors to fit.
    """
    at_a_time = max(1, _GATHERED // max(1, indices.shape[1] * rows.shape[1]))
    parts = [_explained(*some, others) for some in zip(rows.split(at_a_time), indices.split(at_a_time), strict=True)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=rows.device)


def _explained(rows: Tensor, indices: Tensor, others: Tensor) -> Tensor:
    """[R], from the normal equations of unit vectors, solved by eigenvectors to allow linearly dependent vectors."""
    target = directions(rows)
    basis = directions(others[indices.clamp_min(0)]).masked_fill((indices < 0)[:, :, None], 0)
    values, vectors = torch.linalg.eigh(basis @ basis.mT)
    along = torch.einsum("rkj,rkd,rd->rj", vectors, basis, target).square()
    spans = values > _RANK * values[:, -1:].clamp_min(1)
    return (along / values.masked_fill(~spans, 1)).masked_fill(~spans, 0).sum(dim=1).clamp(0, 1)
