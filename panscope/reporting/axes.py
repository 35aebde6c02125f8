"""What is drawn along an axis: the field of a row, its title with the unit, whether its scale is logarithmic."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from panscope.reporting.figure import Row

_ROOM = 0.06
"""The margin of an axis beyond its first and last value, as a share of its length."""


@dataclass(frozen=True)
class Axis:
    """One axis."""

    field: str
    title: str
    log: bool = False
    format: str = "~g"


L0 = Axis("l0", "L0 (active latents per token)", log=True, format="~s")
L0_LINEAR = replace(L0, log=False)
DELTA_LOSS = Axis("delta_loss", "delta loss (nats per token)", log=True)
FVU = Axis("fvu", "FVU (share of variance)", log=True)
EXPLAINED = Axis("explained_variance", "explained variance (share)", format=".2~f")
MSE = Axis("mse", "MSE (squared error per entry)", log=True)
L1 = Axis("l1", "L1 (sum of activations per token)")
KL = Axis("kl", "KL divergence (nats per token)", log=True)
LAYER = Axis("layer", "layer", format="d")


def fitting(axis: Axis, rows: Iterable[Row]) -> Axis:
    """The axis with a logarithmic scale only where every value is above 0 and the largest three times the least."""
    values = [row[axis.field] for row in rows if row.get(axis.field) is not None]
    return replace(axis, log=axis.log and bool(values) and 0 < 3 * min(values) <= max(values))


def domain(axis: Axis, rows: Iterable[Row], more: Iterable[float] = ()) -> list[float] | None:
    """From where to where the axis goes: all values and their intervals, `more`, and a little room; None without any.

    On a logarithmic axis an interval that reaches 0 ends at half the smallest value.
    """
    rows = list(rows)
    values = [row[axis.field] for row in rows if row.get(axis.field) is not None]
    ends = [
        row[f"{axis.field}_{end}"]
        for row in rows
        for end in ("low", "high")
        if row.get(f"{axis.field}_{end}") is not None
    ]
    if not values:
        return None
    values += more
    low, high = min(values + ends), max(values + ends)
    if axis.log:
        low = max(low, min(values) / 2)
        room = max((math.log(high) - math.log(low)) * _ROOM, 0.02)
        return [low / math.exp(room), high * math.exp(room)]
    room = (high - low) * _ROOM or max(abs(high), 1) * _ROOM
    return [low - room, high + room]
