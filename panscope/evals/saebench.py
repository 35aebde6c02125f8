"""The numbers of SAEBench's `core` evaluation that come from rows alone (Karvonen et al. 2025).

They follow its code, also where that is odd; `formats/saebench.py` defines each one, and writes them as SAEBench does.

Shape letters: B rows, E width.
"""

import math

from torch import Tensor

SMALLEST_NORM = 1e-4


class CoreRows:
    """The `saebench_` numbers that come from rows alone; each update is one batch of SAEBench, and must be whole."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def update(self, y: Tensor, y_hat: Tensor) -> None:
        """Add all rows [B, E] of one batch and their reconstructions; a batch without rows is no batch."""
        if len(y):
            self._take(_measure(y.double(), y_hat.double()))

    def merge(self, other: "CoreRows") -> None:
        """Add the sums of `other`; `other` is not changed."""
        self._take(other._sums)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums; empty before the first batch."""
        return {name: value.clone() for name, value in self._sums.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from where `state_dict` was taken."""
        self._sums = {name: value.clone() for name, value in state.items()}

    def numbers(self) -> dict[str, float]:
        """Each number under its name, NaN where it is undefined; at least one batch must have come."""
        sums = {name: float(value) for name, value in self._sums.items()}
        rows, batches = sums["rows"], sums["batches"]
        variance = sums["square"] / batches - (sums["entry_square"] / batches) ** 2
        return {
            "saebench_explained_variance": 1 - ratio(sums["error"] / batches, variance),
            "saebench_explained_variance_legacy": sums["legacy"] / rows,
            "saebench_mse": sums["error"] / rows,
            "saebench_l2_norm_in": sums["norm_in"] / rows,
            "saebench_l2_norm_out": sums["norm_out"] / rows,
            "saebench_l2_ratio": sums["norm_ratio"] / rows,
            "saebench_relative_reconstruction_bias": sums["bias"] / batches,
        }

    def _take(self, sums: dict[str, Tensor]) -> None:
        one, other = (
            self._sums,
            {name: value.cpu() for name, value in sums.items()},
        )  # sums that were loaded are on the CPU
        self._sums = {name: one[name] + other[name] for name in one} if one and other else one or other


def _measure(y: Tensor, y_hat: Tensor) -> dict[str, Tensor]:
    """The sums of one batch: over rows, or the batch's own mean, of which there is one a batch."""
    error = (y - y_hat).square().sum(dim=1)
    norm, norm_out = y.norm(dim=1), y_hat.norm(dim=1)
    return {
        "rows": y.new_tensor(len(y)),
        "batches": y.new_tensor(1.0),
        "error": error.mean(),
        "square": y.square().sum(dim=1).mean(),
        "entry_square": y.square().mean(),
        "legacy": (1 - error / (y - y.mean(dim=0)).square().sum(dim=1)).sum(),
        "norm_in": norm.sum(),
        "norm_out": norm_out.sum(),
        "norm_ratio": (norm_out / norm.where(norm >= SMALLEST_NORM, 1.0)).sum(),
        "bias": norm_out.square().mean() / (y * y_hat).sum(dim=1).mean(),
    }


def ratio(numerator: float, denominator: float) -> float:
    """NaN where the denominator is 0."""
    return numerator / denominator if denominator != 0 else math.nan
