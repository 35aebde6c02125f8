"""The quality of a coder, its FVU and L0 on held-out rows, and the comparison of coders at equal L0.

FVU = sum |x - x^|^2 / sum |x - mean|^2 over raw held-out rows, in float64. The L0 of JumpReLU and Gated cannot be set
exactly, so coders are compared on curves: log FVU over log L0, interpolated by a parabola through the three nearest
points. The curves are convex, and linear interpolation between points a factor of two apart was up to 5 % off
for JumpReLU.

Shape letters: M rows measured on, D width of a site, F latents.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 4096
"""Rows measured at a time."""
_SLACK = 0.005
"""How far beyond its ends, in log L0, a curve is taken to be constant: a TopK row may use fewer than K latents."""


@dataclass(frozen=True)
class Quality:
    """The quality of one coder on held-out rows."""

    l0: float
    """Active latents of a row, averaged over rows."""
    fvu: float
    dead: float
    """The share of latents that are active on no row."""


@torch.no_grad()
def measure(coder: Callable[[Tensor], tuple[Tensor, Tensor]], rows: Tensor) -> Quality:
    """The quality on raw rows [M, D] of `coder`, which returns codes [., F] and reconstructions [., D]."""
    error, active, fired = 0.0, 0, torch.zeros(1, dtype=torch.int64)
    for x in rows.split(_CHUNK):
        code, x_hat = coder(x)
        error += (x.double() - x_hat.double()).square().sum().item()
        active += int((code != 0).sum())
        fired = fired + (code != 0).sum(dim=0)
    scatter = (rows.double() - rows.double().mean(dim=0)).square().sum().item()
    return Quality(active / len(rows), error / scatter, (fired == 0).double().mean().item())


def fvu_at(l0: float, curve: Iterable[Quality]) -> float:
    """The FVU of a curve at `l0`; infinity outside of its range, as nothing is extrapolated."""
    points = sorted((math.log(point.l0), math.log(point.fvu)) for point in curve if point.l0 > 0 and point.fvu > 0)
    apart = [points[n] for n in range(len(points)) if n == 0 or points[n][0] > points[n - 1][0]]
    if not apart or not apart[0][0] - _SLACK <= math.log(l0) <= apart[-1][0] + _SLACK:
        return math.inf
    x = min(max(math.log(l0), apart[0][0]), apart[-1][0])
    return math.exp(_parabola(x, sorted(apart, key=lambda point: abs(point[0] - x))[:3]))


def _parabola(x: float, points: list[tuple[float, float]]) -> float:
    """The value at x of the parabola through three points, or the line through two (Lagrange's form)."""
    total = 0.0
    for n, (here, value) in enumerate(points):
        others = [other for m, (other, _) in enumerate(points) if m != n]
        total += value * math.prod((x - other) / (here - other) for other in others)
    return total
