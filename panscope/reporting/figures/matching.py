"""Do two coders learn the same directions? How many latents of one have a partner in the other above each cosine.

Llama Scope, Figure 8: the distribution of max-cosine similarities, beside that of random directions.
"""

from functools import partial

import numpy

from panscope.reporting import charts, choice, style
from panscope.reporting.axes import Axis, domain
from panscope.reporting.figure import Figure, Missing, Row, Spec
from panscope.reporting.geometry import Finding, findings, missing
from panscope.reporting.runs import Results

MOST = 6
ABREAST = 3
STEPS = 101
"""Points of each curve: enough for the eye."""
_COSINE = Axis("cosine", "largest cosine to a latent of the other coder")
_BELOW = Axis("below", "cumulative share of latents", format=".0%")


def matching(results: Results) -> Figure | Missing:
    """A panel a pair of coders: the cumulative distribution of the largest cosines."""
    every = list(findings(results, "matching"))
    chosen = _one_a_place(every)
    rows = [row for finding in chosen for row in _curves(finding)]
    if not rows:
        return missing(results, "no two coders were compared")
    note = choice.note(chosen, every, "pairs of coders", then="the folder geometry/ contains all")
    return Figure(rows, partial(_panels, rows), note)


def _one_a_place(every: list[Finding]) -> list[Finding]:
    """At most so many pairs, of as many places as there are."""
    first = list({finding.place: finding for finding in reversed(every)}.values())[::-1]
    others = [finding for finding in every if finding not in first]
    return choice.spread(first, MOST) + choice.spread(others, max(0, MOST - len(first)))


def _curves(finding: Finding) -> list[Row]:
    """The share of latents at or below each of 101 quantiles, of the pair and of chance."""
    table = [row for row in finding.table() if row["partner"] >= 0]
    pair, shares = f"{finding.entry['a']} in {finding.entry['b']}", numpy.linspace(0, 1, STEPS)
    rows: list[Row] = []
    for of, name in (("these coders", "cosine"), ("random directions", "random_cosine")):
        cosines = numpy.quantile([row[name] for row in table], shares) if table else []
        rows += [
            {
                "pair": pair,
                "a": finding.entry["a"],
                "b": finding.entry["b"],
                "of": of,
                "cosine": float(cosine),
                "below": float(share),
            }
            for cosine, share in zip(cosines, shares, strict=False)
        ]
    return rows


def _panels(rows: list[Row], room: int) -> Spec:
    abreast = style.abreast(ABREAST, room)
    size = {"width": style.panel_width(abreast, room, between=70 if abreast > 1 else 18), "height": 220}
    panels = [size | _panel(rows, pair, room) for pair in dict.fromkeys(row["pair"] for row in rows)]
    return {"concat": panels, "columns": abreast, "spacing": 20}


def _panel(rows: list[Row], pair: str, room: int) -> Spec:
    colour = charts.name_colour(rows, "of", "largest cosines of", ("#0072B2", "#8a93a1"))
    names = [{"field": name, "type": "nominal"} for name in ("a", "b", "of")]
    encoding = {
        "x": charts.positional(_COSINE, domain(_COSINE, rows)),
        "y": charts.positional(_BELOW, [0, 1]),
        "color": charts.fitting_legend(colour, room),
        "tooltip": [*names, *charts.tooltip(rows, (_COSINE, _BELOW))],
    }
    chosen = [{"filter": {"field": "pair", "equal": pair}}]
    title = {"text": pair.split(" in ", 1), "anchor": "middle", "fontSize": 11, "offset": 6}
    mark = {"type": "line", "strokeWidth": 2}
    return {"title": title, "transform": chosen, "mark": mark, "encoding": encoding}
