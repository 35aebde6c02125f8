"""Synthetic rows that resemble activations, held in memory: the input of every contestant's steps.

A row is the sum of a mean that all rows share, a sparse combination of random directions with positive coefficients,
and noise. All batches differ and no number is 0, so that no step is cheaper than in real training.

Shape letters: B rows of a batch, D width of a row, M directions, K directions in a row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.step.case import Case

BATCHES = 8
"""Different batches, used in turn."""
_DIRECTIONS = 4
"""M / D."""
_IN_A_ROW = 32
"""K."""
_SHARES = {"sum": 0.6, "mean": 0.3, "noise": 0.1}
"""The share of each part in a row's mean square."""


def make_rows(case: Case, batches: int = BATCHES, seed: int = 0) -> list[Tensor]:
    """`batches` different [B, D] float32, with a mean square of about 1 in each dimension."""
    generator = torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(_DIRECTIONS * case.d, case.d, generator=generator), dim=1)
    mean = torch.randn(case.d, generator=generator)
    mean *= (_SHARES["mean"] / mean.square().mean()).sqrt()
    return [_batch(case, directions, mean, generator) for _ in range(batches)]


def _batch(case: Case, directions: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
    """[B, D] from directions [M, D] and the mean [D]."""
    chosen = torch.randint(len(directions), (case.rows, _IN_A_ROW), generator=generator)
    sizes = torch.empty(case.rows, _IN_A_ROW).exponential_(generator=generator)
    total = functional.embedding_bag(chosen, directions, per_sample_weights=sizes, mode="sum")
    total *= (_SHARES["sum"] / total.square().mean()).sqrt()
    noise = torch.randn(case.rows, case.d, generator=generator) * _SHARES["noise"] ** 0.5
    return total + mean + noise
