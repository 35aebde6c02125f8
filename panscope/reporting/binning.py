"""Positions of a sequence put together in bins that widen with the position, so that a page stays small.

A bin's value is the mean over its tokens, so bins of one position change nothing. Losses are means over predicted
tokens and are weighed by those. Positions without content tokens (BOS) are left out: nothing is replaced there.
"""

from collections.abc import Sequence
from functools import cache

import numpy

from panscope.reporting.figure import Row

MOST_BINS = 100
_WEIGHTS = {"l0": "tokens", "mse": "tokens", "fvu": "tokens", "delta_loss": "predicted_tokens"}


@cache
def edges(positions: int, most: int = MOST_BINS) -> tuple[int, ...]:
    """Where bins of the positions 0 .. positions - 1 begin, and the end of the last: at most so many, log-spaced."""
    if positions <= most:
        return tuple(range(positions + 1))
    best = numpy.array([0, positions])
    for steps in range(1, 20 * most):
        found = numpy.unique(numpy.geomspace(1, positions + 1, steps + 1).round().astype(int)) - 1
        if len(found) - 1 > most:
            break
        best = found
    return tuple(best.tolist())


def binned(table: Sequence[Row]) -> list[Row]:
    """The bins of the rows of one site in positions.parquet that hold tokens."""
    if not table:
        return []
    starts = edges(max(row["position"] for row in table) + 1)
    groups: dict[int, list[Row]] = {}
    ends = numpy.searchsorted(starts, [row["position"] for row in table], side="right")
    for row, number in zip(table, ends.tolist(), strict=True):
        if row["tokens"]:
            groups.setdefault(number, []).append(row)
    return [_bin(groups[number]) for number in sorted(groups)]


def _bin(rows: list[Row]) -> Row:
    places = [row["position"] + 1 for row in rows]
    whole: Row = {"place_in_sequence": (places[0] + places[-1]) / 2, "first": places[0], "last": places[-1]}
    whole |= {"tokens": sum(row["tokens"] for row in rows)}
    return whole | {name: _mean(rows, name, weight) for name, weight in _WEIGHTS.items()}


def _mean(rows: list[Row], name: str, weight: str) -> float | None:
    """The weighted mean of what is defined."""
    known = [(row[name], row[weight]) for row in rows if row.get(name) is not None and row[weight]]
    total = sum(count for _, count in known)
    return sum(value * count for value, count in known) / total if total else None
