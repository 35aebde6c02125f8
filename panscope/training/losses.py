"""The reconstruction losses, as what the squared error of each row counts.

Every loss the papers use is sum_b w_b |y_hat_b - y_b|^2, where w depends on the targets y alone; so the architectures
know one loss, and this file says the weights.

- `squared_error`: w = 1 / B (Gemma Scope Eq. 4; Llama Scope 2.3).
- `fvu`: 1 / sum_b |y_b - mean y|^2, the mean over the batch: the fraction of variance unexplained (Gao et al.).
- `fvu_scalar`: the same about the one mean of all numbers, as the Multi-Layer SAE's code takes the variance.
- `batch_normed`: 1 / (B E |y_b - mean y|), each row by its own distance from the batch's mean (Llama Scope's released
  code; the paper's text has `squared_error`).

Where rows of several layers are stacked, the two FVUs are taken layer by layer and averaged (Multi-Layer SAE, B.1).

Shape letters: B rows of a layer, S layers stacked (S B rows in total), E output width.
"""

from typing import Literal

import torch
from torch import Tensor

Loss = Literal["squared_error", "fvu", "fvu_scalar", "batch_normed"]


def row_weights(loss: Loss, y: Tensor, stacks: int) -> Tensor:
    """[S B] float32 for targets y [S B, E], `stacks` = S."""
    if loss == "squared_error":
        return y.new_full((len(y),), 1 / len(y))
    layers = y.reshape(stacks, -1, y.shape[1])
    mean = layers.mean(dim=(1, 2), keepdim=True) if loss == "fvu_scalar" else layers.mean(dim=1, keepdim=True)
    squares = (layers - mean).square().sum(dim=2)
    smallest = torch.finfo(y.dtype).tiny
    if loss == "batch_normed":
        return 1 / (y.numel() * squares.sqrt().clamp_min(smallest)).flatten()
    totals = squares.sum(dim=1, keepdim=True).clamp_min(smallest)
    return (1 / (stacks * totals)).expand_as(squares).flatten()
