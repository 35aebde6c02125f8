"""Estimates the training time of a plan on this machine, by timing a matrix product."""

import time
from dataclasses import dataclass

import torch

from panscope.cost.estimate import Cost

_INNER, _OUTER = 512, 4096
"""Inner and outer dimensions of the timed product."""
_MIN_ROWS, _MAX_ROWS = 16, 4096
_MIN_SECONDS = 0.03
"""Minimum duration of the timed product."""


@dataclass(frozen=True)
class TimeHere:
    """An estimate for one device of this machine, without memory traffic and Python overhead."""

    device: str
    flops: float
    """Measured FLOP/s of a float32 product."""
    step_seconds: float
    """Mean time of a step of the plan."""
    hours: float
    """Total training time."""


def time_here(cost: Cost, device: torch.device) -> TimeHere:
    """Estimate the training time from the plan's dense FLOPs and the measured rate of a float32 product on `device`."""
    rate = product_flops(torch.float32, device)
    seconds = (cost.compute.lm_flops + cost.compute.dense_flops) / rate
    return TimeHere(str(device), rate, seconds / cost.plan.steps, seconds / 3600)


def product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of random matrices, with enough rows to be timed reliably.

    A CPU without arithmetic in this dtype can be a thousand times slower than one with it.
    """
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(_INNER, _OUTER, generator=generator).to(device, dtype)
    rows, seconds = _MIN_ROWS // 4, 0.0
    while seconds < _MIN_SECONDS and rows < _MAX_ROWS:
        rows *= 4
        a = torch.randn(rows, _INNER, generator=generator).to(device, dtype)
        _timed_product(a, b)
        seconds = _timed_product(a, b)
    return 2 * rows * _INNER * _OUTER / seconds


def _timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start
