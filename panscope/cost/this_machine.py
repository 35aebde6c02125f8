"""How long a plan would take on this machine, from one matrix product that is timed here."""

import time
from dataclasses import dataclass

import torch

from panscope.cost.estimate import Cost

_INNER, _OUTER = 512, 4096
"""Widths of the timed product."""
_FEWEST_ROWS, _MOST_ROWS = 16, 4096
_LONG_ENOUGH = 0.03
"""Seconds."""


@dataclass(frozen=True)
class TimeHere:
    """An estimate for one device of this machine; memory traffic and Python come on top."""

    device: str
    flops: float
    """FLOP/s of a float32 product."""
    step_seconds: float
    hours: float


def time_here(cost: Cost, device: torch.device) -> TimeHere:
    """The FLOPs of a plan, dense, at the rate of a float32 product on this device."""
    rate = product_flops(torch.float32, device)
    seconds = (cost.compute.lm_flops + cost.compute.dense_flops) / rate
    return TimeHere(str(device), rate, seconds / cost.plan.steps, seconds / 3600)


def product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of random numbers, of as many rows as take long enough to be timed.

    A CPU that has no arithmetic in this dtype can be a thousand times slower than one that has.
    """
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(_INNER, _OUTER, generator=generator).to(device, dtype)
    rows, seconds = _FEWEST_ROWS // 4, 0.0
    while seconds < _LONG_ENOUGH and rows < _MOST_ROWS:
        rows *= 4
        a = torch.randn(rows, _INNER, generator=generator).to(device, dtype)
        _timed_product(a, b)
        seconds = _timed_product(a, b)
    return 2 * rows * _INNER * _OUTER / seconds


def _timed_product(a: torch.Tensor, b: torch.Tensor) -> float:
    begun = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - begun
