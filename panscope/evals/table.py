"""The results of a run for people (a table in the terminal) and for tools (one Parquet file)."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from rich.table import Table

from panscope.storage.atomic import replacing

COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "L0": ("l0", "{:.1f}".format),
    "FVU": ("fvu", "{:.4f}".format),
    "delta loss": ("delta_loss", "{:+.4f}".format),
    "loss recovered": ("loss_recovered", "{:.1%}".format),
    "dead": ("dead_fraction", "{:.1%}".format),
}
"""What the table shows: a heading, its field of eval.json, how it is written."""


def results_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a coder, sorted by name; a number that is undefined shows as `-`."""
    table = Table("coder")
    for heading in COLUMNS:
        table.add_column(heading, justify="right")
    for name in sorted(results):
        table.add_row(name, *(_written(results[name][field], style) for field, style in COLUMNS.values()))
    return table


def _written(number: float | None, style: Callable[[float], str]) -> str:
    return "-" if number is None or math.isnan(number) else style(number)


def write_results(path: Path, results: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write one row a coder, sorted by name: its name, its `facts`, every field of its eval.json.

    A field that a coder does not have is null. The file appears in one piece.
    """
    rows = [{"coder": name} | _disjoint(facts.get(name, {}), results[name]) for name in sorted(results)]
    names = dict.fromkeys(["coder"]) | {column: None for row in rows for column in row}
    table = pyarrow.table({column: [row.get(column) for row in rows] for column in names})
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _disjoint(facts: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    both = facts.keys() & result.keys()
    assert not both, f"facts and results have the same columns: {sorted(both)}"
    return {**facts, **result}
