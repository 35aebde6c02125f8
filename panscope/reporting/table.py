"""The table of results at the head of the page: one row a coder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from panscope.reporting.figure import Row
from panscope.reporting.rows import identity, in_order, measured
from panscope.reporting.runs import Results
from panscope.reporting.words import WORDS

_NUMBERS = ("l0", "fvu", "delta_loss", "loss_recovered", "kl", "dead_fraction", "dense_fraction")


@dataclass(frozen=True)
class TableColumn:
    """One column."""

    field: str
    title: str
    written: Callable[[Any], str]
    meaning: str = ""
    style: str = "number"
    """Its class in the page: number, or nothing for text."""


_COLUMNS = (
    TableColumn("coder", "coder", str, style=""),
    TableColumn("where", "site", str, style=""),
    TableColumn("family", "architecture", str, style=""),
    TableColumn("width", "width", "{:,}".format, "latents"),
    TableColumn("sparsity", "sparsity", "{:g}".format, "K, λ or target L0, as the architecture has it"),
    TableColumn("l0", "L0", "{:.1f}".format, WORDS["L0"]),
    TableColumn("fvu", "FVU", "{:.4f}".format, WORDS["FVU"]),
    TableColumn("delta_loss", "delta loss", "{:+.4f}".format, WORDS["delta loss"]),
    TableColumn("loss_recovered", "loss recovered", "{:.1%}".format, WORDS["loss recovered"]),
    TableColumn("kl", "KL", "{:.4f}".format, WORDS["KL"]),
    TableColumn("dead_fraction", "dead", "{:.1%}".format, WORDS["dead"]),
    TableColumn("dense_fraction", "dense", "{:.1%}".format, WORDS["dense"]),
)


def table_columns(results: Results) -> tuple[TableColumn, ...]:
    """The columns."""
    return _COLUMNS


def table_rows(results: Results) -> list[Row]:
    """A row for every coder, also for one that was not measured yet."""
    several, rows = len(results.runs) > 1, []
    for coder in results.coders():
        sites = coder.facts.sites
        who = identity(coder.facts, sites[0], several=several)
        drawn = results.drawn(coder)
        where = f"L{sites[0].layer:02d} {who['place']}" if len(sites) == 1 else f"{len(sites)} layers, {who['place']}"
        rows.append(who | {"where": where} | measured(drawn.content if drawn else {}, _NUMBERS))
    return in_order(rows)
