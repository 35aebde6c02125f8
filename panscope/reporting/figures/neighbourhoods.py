"""Neighbourhoods of a latent: the directions nearest to it, in its own coder, another one and a wider one, laid flat.

Llama Scope, Figure 7: UMAP keeps who is near whom; axes and distances mean nothing beyond that.
"""

from functools import partial

from panscope.reporting import charts, choice, style
from panscope.reporting.figure import Figure, Missing, Row, Spec
from panscope.reporting.geometry import findings, missing
from panscope.reporting.runs import Results

MOST = 6
ABREAST = 3
_ROLES = {"seed": "the latent", "own": "same coder", "other": "another coder", "wider": "a wider coder"}
_COLOURS = ("#111111", *style.named(3))
_MARKS = ("diamond", "circle", "triangle-up", "square")
_WHAT = "Each point is a direction near that of the latent in the heading, projected to two dimensions by UMAP."


def neighbourhoods(results: Results) -> Figure | Missing:
    """A panel a neighbourhood."""
    every = list(findings(results, "neighbourhood"))
    chosen = choice.spread(every, MOST)
    rows: list[Row] = []
    for finding in chosen:
        title = f"{finding.entry['coder']}, latent {finding.entry['latent']}"
        rows += [row | {"neighbourhood": title, "role": _ROLES[row["role"]]} for row in finding.table()]
    if not rows:
        return missing(results, "no neighbourhood of a latent was computed")
    roles = [role for role in _ROLES.values() if any(row["role"] == role for row in rows)]
    titles = list(dict.fromkeys(row["neighbourhood"] for row in rows))
    note = choice.note(chosen, every, "neighbourhoods", then="the folder geometry/ contains all")
    return Figure(rows, partial(_panels, titles, roles), f"{_WHAT} {note}".strip())


def _panels(titles: list[str], roles: list[str], room: int) -> Spec:
    abreast = style.abreast(ABREAST, room)
    size = {"width": style.panel_width(abreast, room), "height": 260}
    return {"concat": [size | _panel(title, roles, room) for title in titles], "columns": abreast, "spacing": 20}


def _panel(title: str, roles: list[str], room: int) -> Spec:
    bare = {
        "title": None,
        "axis": {"labels": False, "ticks": False, "grid": False},
        "scale": {"zero": False, "padding": 14},
    }
    looks = dict(zip(_ROLES.values(), zip(_COLOURS, _MARKS, strict=True), strict=True))
    colours = {"domain": roles, "range": [looks[role][0] for role in roles]}
    marks = {"domain": roles, "range": [looks[role][1] for role in roles]}
    names = (("coder", "coder"), ("latent", "latent"), ("role", "found in"))
    encoding: Spec = {axis: {"field": axis, "type": "quantitative", **bare} for axis in ("x", "y")}
    for channel, scale in (("color", colours), ("shape", marks)):
        role = {"field": "role", "type": "nominal", "scale": scale, "legend": {"title": "found in"}}
        encoding[channel] = charts.fitting_legend(role, room)
    encoding["tooltip"] = [{"field": field, "type": "nominal", "title": words} for field, words in names]
    encoding["tooltip"] += [
        {"field": "cosine", "type": "quantitative", "title": "cosine to the latent", "format": ".3f"}
    ]
    mark = {"type": "point", "filled": True, "size": 70, "opacity": 0.85}
    chosen = [{"filter": {"field": "neighbourhood", "equal": title}}]
    title_above = {"text": title, **style.PANEL_TITLE}
    return {"title": title_above, "transform": chosen, "mark": mark, "encoding": encoding}
