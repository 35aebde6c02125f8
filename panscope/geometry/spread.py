"""Summary statistics of a set of numbers: moments and quantiles."""

import math
from typing import Any

import torch
from torch import Tensor

LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
"""The quantiles that are reported."""


def spread(values: Tensor) -> dict[str, Any]:
    """Mean, variance (with n - 1), standard error of the mean, extremes and quantiles of values [n], in float64.

    Undefined statistics (of no values; the variance of one) are NaN. A quantile is always one of the values: the
    smallest one that at least this share of the values does not exceed.
    """
    ordered = values.double().sort().values
    count = len(ordered)
    mean = ordered.sum().item() / count if count else math.nan
    variance = (ordered - mean).square().sum().item() / (count - 1) if count > 1 else math.nan
    found: dict[str, Any] = {
        "mean": mean,
        "variance": variance,
        "sem": math.sqrt(variance / count) if count else math.nan,
    }
    found |= {"min": _at(ordered, 0.0), "max": _at(ordered, 1.0)}
    return found | {"quantiles": {f"{level:g}": _at(ordered, level) for level in LEVELS}}


def _at(ordered: Tensor, level: float) -> float:
    return ordered[max(0, math.ceil(level * len(ordered)) - 1)].item() if len(ordered) else math.nan


def share(which: Tensor) -> float:
    """The share of True in [n] bool; NaN if empty."""
    return which.double().mean().item() if len(which) else math.nan


def largest(values: Tensor) -> float:
    """The largest of values [n]; NaN if empty."""
    return torch.max(values).item() if len(values) else math.nan
