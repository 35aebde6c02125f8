"""What a wider dictionary has that a narrower one at the same site has not: new directions, and ones that have split.

Llama Scope, section 4.6; Bricken et al. 2023.
"""

from functools import partial
from typing import Any

from panscope.reporting import charts, style
from panscope.reporting.axes import Axis, domain
from panscope.reporting.figure import Figure, Missing, Row, Spec
from panscope.reporting.geometry import Finding, findings, missing
from panscope.reporting.rows import has_widths
from panscope.reporting.runs import Results

_QUANTITIES = (
    Axis("new", "new (share of the wide coder's latents)", format=".0%"),
    Axis("split", "split (share of the narrow coder's latents)", format=".0%"),
)


def splitting(results: Results) -> Figure | Missing:
    """New and split latents by how much wider a coder is."""
    rows = [_row(finding) for finding in findings(results, "splitting")]
    if not rows and not has_widths(results):
        return Missing("no site has coders of two widths", "list several in `width` of a suite file and train them")
    if not rows:
        return missing(results, "no narrow coder was compared with a wider one at its site")
    return Figure(rows, partial(_panels, rows))


def _row(finding: Finding) -> Row:
    entry: dict[str, Any] = finding.entry
    numbers = entry["numbers"]
    row = {"narrow": entry["narrow"], "wide": entry["wide"], "site": finding.place, "new": numbers["new"]}
    row |= {
        "split": numbers["split"],
        "times_wider": numbers["wide"] / numbers["narrow"],
        "threshold": numbers["threshold"],
    }
    return row | {"narrow_latents": numbers["narrow"], "wide_latents": numbers["wide"]}


def _panels(rows: list[Row], room: int) -> Spec:
    abreast = style.abreast(len(_QUANTITIES), room)
    size = {"width": style.panel_width(abreast, room, 420), "height": 220}
    return {"concat": [size | _panel(rows, axis, room) for axis in _QUANTITIES], "columns": abreast, "spacing": 24}


def _panel(rows: list[Row], y: Axis, room: int) -> Spec:
    x = Axis("times_wider", "width ratio (wide / narrow)")
    names = [{"field": name, "type": "nominal"} for name in ("narrow", "wide", "site")]
    encoding = {
        "x": charts.positional(x, domain(x, rows)),
        "y": charts.positional(y, domain(y, rows)),
        "color": charts.fitting_legend(charts.name_colour(rows, "site", "site"), room),
        "tooltip": [*names, *charts.tooltip(rows, (x, y))],
    }
    mark = {"type": "point", "filled": True, "size": 60, "opacity": 0.75}
    return {"mark": mark, "encoding": encoding}
