"""Rows that look like activations, held in memory: what every contestant's steps learn from.

A row is a mean that all rows share, a sparse sum of random directions with positive coefficients, and noise. No two
batches are alike and no number is 0, so nothing about a step is easier than in training.

Shape letters: B rows of a batch, D width of a row, M directions, K directions in a row.
"""

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.step_case import Case

BATCHES = 8
"""Different batches, taken in turn."""
_DIRECTIONS = 4
"""M / D."""
_IN_A_ROW = 32
"""K."""
_SHARES = {"sum": 0.6, "mean": 0.3, "noise": 0.1}
"""Of a row's mean square."""


def make_rows(case: Case, batches: int = BATCHES, seed: int = 0) -> list[Tensor]:
    """`batches` different [B, D] float32, of mean square 1 a dimension."""
    generator = torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(_DIRECTIONS * case.d, case.d, generator=generator), dim=1)
    mean = torch.randn(case.d, generator=generator)
    mean *= (_SHARES["mean"] / mean.square().mean()).sqrt()
    return [_batch(case, directions, mean, generator) for _ in range(batches)]


def _batch(case: Case, directions: Tensor, mean: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(len(directions), (case.rows, _IN_A_ROW), generator=generator)
    sizes = torch.empty(case.rows, _IN_A_ROW).exponential_(generator=generator)
    total = functional.embedding_bag(chosen, directions, per_sample_weights=sizes, mode="sum")
    total *= (_SHARES["sum"] / total.square().mean()).sqrt()
    noise = torch.randn(case.rows, case.d, generator=generator) * _SHARES["noise"] ** 0.5
    return total + mean + noise
