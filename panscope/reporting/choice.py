"""What a figure draws where a suite has more coders than one can look at; the CSV file beside it holds them all."""

from collections import Counter
from collections.abc import Sequence, Sized
from typing import TypeVar

from panscope.reporting.figure import Row

MOST_LAYERS = 3
MOST_LINES = 8
_T = TypeVar("_T")


def spread(items: Sequence[_T], most: int) -> list[_T]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[len(items) // 2]]
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def layers(rows: Sequence[Row], most: int = MOST_LAYERS) -> list[int]:
    """At most so many layers, those with the most coders first; of those with equally many, some at even distances.

    Three layers of 32 are then 7, 15 and 23, as in Llama Scope's Figure 2. Layers with less than half as many coders as
    the fullest are left out, as a point or two make no curve.
    """
    every = Counter(row["layer"] for row in rows)
    counts = {layer: count for layer, count in every.items() if 2 * count >= max(every.values())}
    chosen: list[int] = []
    for count in sorted(set(counts.values()), reverse=True):
        alike = sorted(layer for layer, found in counts.items() if found == count)
        room = most - len(chosen)
        if len(alike) > room:
            alike = [alike[round(len(alike) * (n + 1) / (room + 1)) - 1] for n in range(room)]
        chosen += alike
    return sorted(chosen)


def few_layers(rows: Sequence[Row]) -> list[int]:
    """The layers that get panels of their own: all of four or fewer, else three."""
    found = {row["layer"] for row in rows}
    return sorted(found) if len(found) <= MOST_LAYERS + 1 else layers(rows)


def middle_layer(rows: Sequence[Row]) -> int:
    """One layer: of those with the most coders, the middle one."""
    return layers(rows, 1)[0]


def at_middle_layers(rows: Sequence[Row], most: int = MOST_LINES) -> list[Row]:
    """The rows at the middle layer of every place, at most `most` in total, but at least one for each place."""
    middle: list[Row] = []
    for place in dict.fromkeys(row["place"] for row in rows):
        here = [row for row in rows if row["place"] == place]
        layer = middle_layer(here)
        middle += [row for row in here if row["layer"] == layer]
    kept = {id(row) for row in few_variants(middle, most)}
    lost = {row["place"] for row in middle} - {row["place"] for row in middle if id(row) in kept}
    kept |= {id(next(row for row in middle if row["place"] == place)) for place in lost}
    return [row for row in middle if id(row) in kept]


def few_variants(rows: Sequence[Row], most: int = MOST_LINES) -> list[Row]:
    """The rows of at most so many variants: those found at the most sites, so that a line runs over all layers."""
    counts = Counter(row["variant"] for row in rows)
    kept: set[str] = set()
    for count in sorted(set(counts.values()), reverse=True):
        alike = [variant for variant, found in counts.items() if found == count]
        kept |= set(spread(alike, most - len(kept)) if len(kept) < most else [])
    return [row for row in rows if row["variant"] in kept]


def note(drawn: Sized, every: Sized, what: str, *, then: str = "the CSV file contains all") -> str:
    """A sentence where something was left out of a drawing; `then` says where the rest is."""
    return "" if len(drawn) == len(every) else f"Shown: {len(drawn):,} of {len(every):,} {what}; {then}."
