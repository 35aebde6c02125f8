"""How much of a vector is a linear combination of a few others: whether a wide coder's latent is new or composed.

Llama Scope, section 4.6, "Wider SAEs do learn new features": a latent that the narrow coder's nearest vectors together
cannot build is not merely a combination of what the narrow coder knew. Any vector is a combination of D others, so few
are taken and a random dictionary of the same shape is fitted beside it (`baselines.py`).

Shape letters: F latents, G latents of the other dictionary, D width, K vectors combined, R latents at a time.
"""

import torch
from torch import Tensor

from panscope.kernels.cosines import directions

_COMBINED = 16
_GATHERED = 1 << 23
"""Numbers gathered at a time: 64 MiB of float64."""
_RANK = 1e-10
"""Of the largest eigenvalue: what is smaller is a direction that the vectors, some being copies, do not span."""


def combined(width: int) -> int:
    """K: how many vectors of D dimensions are combined, at most a quarter of D, as D of them would build anything."""
    return max(1, min(_COMBINED, width // 4))


def explained(rows: Tensor, others: Tensor, indices: Tensor) -> Tensor:
    """[F] float64: |p|^2 / |w|^2, p the least-squares fit to w, a row of `rows` [F, D], by its rows of `others` [G, D].

    `indices` [F, K] says which those are, -1 for none. A row of zeros, or one with none to fit, is explained by 0.
    """
    at_a_time = max(1, _GATHERED // max(1, indices.shape[1] * rows.shape[1]))
    parts = [_explained(*some, others) for some in zip(rows.split(at_a_time), indices.split(at_a_time), strict=True)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=rows.device)


def _explained(rows: Tensor, indices: Tensor, others: Tensor) -> Tensor:
    """[R] by the normal equations of unit vectors, solved in their eigenvectors so that copies do no harm."""
    target = directions(rows)
    basis = directions(others[indices.clamp_min(0)]).masked_fill((indices < 0)[:, :, None], 0)
    values, vectors = torch.linalg.eigh(basis @ basis.mT)
    along = torch.einsum("rkj,rkd,rd->rj", vectors, basis, target).square()
    spans = values > _RANK * values[:, -1:].clamp_min(1)
    return (along / values.masked_fill(~spans, 1)).masked_fill(~spans, 0).sum(dim=1).clamp(0, 1)
