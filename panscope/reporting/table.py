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
    """Its classes in the page: number for numbers; about for what a narrow page writes below the name of the coder."""


COLUMNS = (
    TableColumn("coder", "coder", str, style=""),
    TableColumn("where", "site", str, style="about"),
    TableColumn("family", "architecture", str, style="about"),
    TableColumn("width", "width", "{:,}".format, "number of latents", "number about"),
    TableColumn(
        "sparsity",
        "sparsity",
        "{:g}".format,
        "K, penalty coefficient λ or target L0, depending on the architecture",
        "number about",
    ),
    TableColumn("l0", "L0", "{:.1f}".format, WORDS["L0"]),
    TableColumn("fvu", "FVU", "{:.4f}".format, WORDS["FVU"]),
    TableColumn("delta_loss", "delta loss", "{:+.4f}".format, WORDS["delta loss"]),
    TableColumn("loss_recovered", "loss recovered", "{:.1%}".format, WORDS["loss recovered"]),
    TableColumn("kl", "KL", "{:.4f}".format, WORDS["KL"]),
    TableColumn("dead_fraction", "dead", "{:.1%}".format, WORDS["dead"]),
    TableColumn("dense_fraction", "dense", "{:.1%}".format, WORDS["dense"]),
)


def table_rows(results: Results) -> list[Row]:
    """A row for every coder, also for one that was not measured yet."""
    several, rows = len(results.runs) > 1, []
    for coder in results.coders():
        sites = coder.facts.sites
        who = identity(coder.facts, sites[0], several=several)
        drawn = results.drawn(coder)
        layers = sorted({site.layer for site in sites})
        where = f"L{layers[0]:02d} {who['place']}" if len(sites) == 1 else f"{len(sites)} layers, {who['place']}"
        what = {"where": where, "layers": " ".join(map(str, layers))}
        rows.append(who | what | measured(drawn.content if drawn else {}, _NUMBERS))
    return in_order(rows)
