"""One start for every contestant: centred on the rows' mean and, without TopK, with as many active latents as asked.

Steps of an encoder at its initialisation are not what training is made of: half of all latents are active there. So
each contestant, in its own initial weights, gets the one threshold (JumpReLU) or encoder bias (ReLU) above which the
wanted number of latents is active on these rows.

Shape letters: N rows, D width of a row, F latents.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.step_case import Case

RATE = 1e-6
"""Every contestant's learning rate: each operation of a step is done, and L0 stays where it was put."""
_SAMPLE = 512
"""Rows the threshold is found on."""


@dataclass(frozen=True)
class Start:
    """Where a contestant begins."""

    mean: Tensor
    """[D] of all rows: its decoder bias."""
    threshold: float
    """Above it are as many of (x - mean) W_enc^T a row as the case asks for, about."""


@torch.no_grad()
def start(case: Case, batches: list[Tensor], W_enc: Tensor) -> Start:
    """The start for a contestant with encoder W_enc [F, D]."""
    mean = mean_of(batches)
    sample = torch.cat([rows[: max(1, _SAMPLE // len(batches))] for rows in batches])
    return Start(mean, threshold((sample - mean) @ W_enc.T, case.active))


def mean_of(batches: list[Tensor]) -> Tensor:
    """[D] of all rows."""
    return torch.stack([rows.mean(dim=0) for rows in batches]).mean(dim=0)


def threshold(pre: Tensor, active: int) -> float:
    """The number that `active` of pre [N, F] a row are above, in the mean."""
    values = pre.flatten()
    least, below = values.topk(min(len(values), active * len(pre) + 1)).values[-2:].tolist()
    return (least + below) / 2
