"""The same starting point for every contestant: centred on the rows' mean, with the wanted number of active latents.

At its usual initialisation an encoder without TopK has half of all latents active, which no coder has for most of
training. So each contestant keeps its own initial weights but gets the one threshold (JumpReLU) or encoder bias (ReLU)
above which the wanted number of latents is active on these rows.

Shape letters: N rows, D width of a row, F latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.step.case import Case

RATE = 1e-6
"""Every contestant's learning rate: all operations of a step are done, while L0 hardly changes."""
_SAMPLE = 512
"""Rows from which the threshold is estimated."""


@dataclass(frozen=True)
class Start:
    """Values that a contestant's parameters are set to."""

    mean: Tensor
    """[D] the mean of all rows, for the decoder bias."""
    threshold: float
    """About as many of (x - mean) W_enc^T in a row are above it as the case asks for."""


@torch.no_grad()
def start(case: Case, batches: list[Tensor], W_enc: Tensor) -> Start:
    """The starting point of a contestant with the encoder W_enc [F, D]."""
    mean = mean_of(batches)
    sample = torch.cat([rows[: max(1, _SAMPLE // len(batches))] for rows in batches])
    return Start(mean, threshold((sample - mean) @ W_enc.T, case.active))


def mean_of(batches: list[Tensor]) -> Tensor:
    """[D] the mean of all rows [B, D] of equally large batches."""
    return torch.stack([rows.mean(dim=0) for rows in batches]).mean(dim=0)


def threshold(pre: Tensor, active: int) -> float:
    """The value that `active` numbers a row of the pre-activations pre [N, F] exceed, averaged over rows."""
    values = pre.flatten()
    least, below = values.topk(min(len(values), active * len(pre) + 1)).values[-2:].tolist()
    return (least + below) / 2
