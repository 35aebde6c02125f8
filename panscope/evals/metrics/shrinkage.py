"""`relative_reconstruction_bias` and `l2_ratio`: whether reconstructions are too small or too large.

- relative_reconstruction_bias = sum ||y_hat||^2 / sum y . y_hat: below 1 where the coder shrinks, 1 where scaling the
  reconstruction by one factor could not help (Rajamanoharan et al. 2024a, Gated SAEs, appendix).
- l2_ratio = mean over rows of ||y_hat|| / ||y|| (SAEBench, core metrics); rows of 0 are left out.
"""

import torch
from torch import Tensor

from panscope.evals.metrics.base import Metric, Numbers, Sums, ratio
from panscope.evals.outcome import Outcome


def _ratios(outcome: Outcome) -> Tensor:
    """[B] norm over norm, 0 where the row is 0."""
    some = outcome.sizes > 0
    return torch.where(some, (outcome.sizes_hat / torch.where(some, outcome.sizes, 1)).sqrt(), 0)


def _numbers(sums: Sums) -> Numbers:
    return {
        "relative_reconstruction_bias": ratio(sums["size_hat"], sums["product"]),
        "l2_ratio": ratio(sums["ratio"], sums["not_zero"]),
    }


SHRINKAGE = Metric(
    "rows",
    {
        "size_hat": lambda o: o.sizes_hat,
        "product": lambda o: o.products,
        "ratio": _ratios,
        "not_zero": lambda o: (o.sizes > 0).double(),
    },
    _numbers,
)
