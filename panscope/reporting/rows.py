"""Coders and their numbers as plain rows: what most figures are drawn of.

A coder of several sites gives one row a site, so that at each layer it can be compared with the coders of that layer.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from panscope.coders.wiring import WIRINGS
from panscope.reporting.figure import Row
from panscope.reporting.runs import CoderResults, Results, RunFacts
from panscope.site_kinds import KINDS
from panscope.types import SITE_KINDS, Site

SEVERAL = "several layers"
"""Stands in the name of a place for coders of several sites, where they are taken as a whole."""
IDENTITY = (
    "coder",
    "run",
    "place",
    "layer",
    "site",
    "variant",
    "family",
    "architecture",
    "wiring",
    "width",
    "sparsity",
)


def site_rows(results: Results, metrics: Sequence[str], label: str | None = None) -> list[Row]:
    """A row for each coder and site that it predicts: who it is, each metric, and its 95 % interval as _low, _high.

    Only where at least one of the metrics is known; of the evaluation that is drawn, or the one of a `label`.
    """
    several, label = len(results.runs) > 1, label or results.label
    rows = []
    for coder in results.coders():
        if label in coder.evaluations:
            content = coder.evaluations[label].content
            for site in coder.facts.sites:
                numbers = _numbers_at(content, site, len(coder.facts.sites))
                row = identity(coder.facts, site, several=several) | measured(numbers, metrics)
                if any(row[metric] is not None for metric in metrics):
                    rows.append(row)
    return in_order(rows)


def coder_rows(results: Results) -> list[Row]:
    """A row for each coder: who it is; one of several sites stands at a place of its own, at its first layer."""
    several, rows = len(results.runs) > 1, []
    for coder in results.coders():
        row = identity(coder.facts, coder.facts.sites[0], several=several)
        rows.append(row | ({} if len(coder.facts.sites) == 1 else {"place": f"{row['place']}, {SEVERAL}"}))
    return in_order(rows)


def has_widths(results: Results) -> bool:
    """Whether coders of one wiring at the same sites differ in width."""
    widths: dict[tuple[str, tuple[Site, ...]], set[int]] = {}
    for coder in results.coders():
        widths.setdefault((coder.facts.wiring, tuple(coder.facts.sites)), set()).add(coder.facts.width)
    return any(len(found) > 1 for found in widths.values())


def at_layer(rows: Iterable[Row]) -> list[Row]:
    """The rows with their layer in the name of their place, for figures of one layer."""
    return [
        row if SEVERAL in row["place"] else row | {"place": f"{row['place']}, layer {row['layer']}"} for row in rows
    ]


def _numbers_at(content: dict[str, Any], site: Site, sites: int) -> dict[str, Any]:
    return content if sites == 1 else content.get("sites", {}).get(str(site), {})


def measured(numbers: dict[str, Any], metrics: Iterable[str]) -> Row:
    """Each metric with the bounds of its interval, None where there is none."""
    row: Row = {}
    for metric in metrics:
        low, high = numbers.get("intervals", {}).get(metric) or (None, None)
        row |= {metric: numbers.get(metric), f"{metric}_low": low, f"{metric}_high": high}
    return row


def identity(facts: RunFacts, site: Site, *, several: bool) -> Row:
    """Who a row is about."""
    whose = f"{facts.run}: " if several else ""
    wiring = facts.wiring if WIRINGS[facts.wiring].has_several_sites else ""
    family = " ".join(filter(None, (facts.architecture, wiring, tag(facts))))
    return {
        "coder": f"{facts.run}/{facts.name}" if several else facts.name,
        "run": facts.run,
        "place": place(facts, site),
        "layer": site.layer,
        "site": str(site),
        "variant": whose + variant(facts, family),
        "family": whose + family,
        "architecture": facts.architecture,
        "wiring": facts.wiring,
        "width": facts.width,
        "sparsity": facts.sparsity,
    }


def place(facts: RunFacts, site: Site) -> str:
    """The kind of site in words; a transcoder's with what it reads."""
    if not WIRINGS[facts.wiring].predicts_other:
        return KINDS[site.kind].label
    read = Site.parse(facts.reads[0])
    if read.kind.startswith("mlp_in") and site.kind == "mlp_out":
        return "MLP transcoder"
    return f"{KINDS[read.kind].label} → {KINDS[site.kind].label}"


def tag(facts: RunFacts) -> str:
    """What a suite file added to the name of a coder to tell it from one that is otherwise alike; '' for none."""
    found = re.search(rf"x-{re.escape(facts.architecture)}(?:-[klt][\d.]+(?:e-?\d+)?)?+-(.+)", facts.name)
    return found[1] if found else ""


def variant(facts: RunFacts, family: str) -> str:
    """What two coders of one recipe at different sites have in common."""
    sparsity = "" if facts.sparsity is None else f", {facts.sparsity_means} = {facts.sparsity:g}"
    return f"{family}, {facts.width:,} wide{sparsity}"


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows in the model's order of sites, then by width and sparsity."""
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    kind = SITE_KINDS.index(Site.parse(row["site"]).kind)
    return kind, row["place"], row["layer"], row["family"], row["width"], row["sparsity"] or 0, row["coder"]


def places(rows: Iterable[Row]) -> list[str]:
    """The places of rows in their order."""
    return list(dict.fromkeys(row["place"] for row in rows))


def coder_of(results: Results, row: Row) -> CoderResults:
    """The coder that a row is about."""
    (run,) = (run for run in results.runs if run.name == row["run"])
    return next(coder for coder in run.coders if row["coder"] in (coder.facts.name, f"{run.name}/{coder.facts.name}"))
