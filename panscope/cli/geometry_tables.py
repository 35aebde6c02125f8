"""What a comparison of decoder vectors found, in a short table for each kind of analysis."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from panscope.api import GeometryResult
from panscope.runs.geometry import Entry

_ROWS_SHOWN = 20
_Row = Sequence[str]


def geometry_tables(results: Sequence[GeometryResult]) -> list[Table]:
    """One short table for each kind of analysis that there is."""
    by_kind: dict[str, list[Entry]] = {}
    for result in results:
        by_kind.setdefault(result.kind, []).append(result.entry)
    return [_table(kind, [row for entry in found for row in _ROWS[kind](entry)]) for kind, found in by_kind.items()]


def _table(kind: str, rows: Sequence[_Row]) -> Table:
    names, *headings = _HEADINGS[kind]
    table = Table()
    table.add_column(names, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows[:_ROWS_SHOWN]:
        table.add_row(*map(escape, row))
    if len(rows) > _ROWS_SHOWN:
        table.add_row(f"... and {len(rows) - _ROWS_SHOWN} more")
    return table


_HEADINGS = {
    "mmcs": ("coder", "MMCS", "± s.e.m.", "chance,\nmean", "chance,\nmax", "J.-L. bound"),
    "matching": ("matching", "median\ncosine", "chance,\nmedian", "above all\nchance"),
    "splitting": ("narrow > wide", "new", "split", "explained,\nmedian", "chance,\nmedian"),
    "neighbourhood": ("neighbourhood of", "latents", "least\ncosine", "least to\nthe seed"),
    "tokens": ("tokens of", "embedding,\nmedian", "unembedding,\nmedian"),
}


def _mmcs(entry: Entry) -> list[_Row]:
    fields = ("mean", "sem", "random_mean", "random_max", "jl")
    return [(name, *(_number(found[field]) for field in fields)) for name, found in entry["numbers"].items()]


def _matching(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    medians = _median(found["cosine"]), _median(found["random"])
    return [(f"{entry['a']} > {entry['b']}", *medians, _share(found["above_random"]))]


def _splitting(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    shares = _share(found["new"]), _share(found["split"])
    medians = _median(found["explained"]), _median(found["random_explained"])
    return [(f"{entry['narrow']} > {entry['wide']}", *shares, *medians)]


def _neighbourhood(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    least = _number(found["min_cosine"]), _number(found["min_cosine_to_seed"])
    return [(f"{entry['coder']} latent {entry['latent']}", str(found["points"]), *least)]


def _tokens(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    return [(entry["coder"], *(_median(found[name]) if name in found else "same" for name in _MATRICES))]


_MATRICES = ("embedding", "unembedding")
_ROWS: dict[str, Any] = {
    "mmcs": _mmcs,
    "matching": _matching,
    "splitting": _splitting,
    "neighbourhood": _neighbourhood,
    "tokens": _tokens,
}


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.1%}"


def _median(spread: dict[str, Any]) -> str:
    return _number(spread["quantiles"]["0.5"])
