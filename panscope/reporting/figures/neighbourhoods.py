"""Neighbourhoods of a latent: the directions nearest to it, in its own coder, another one and a wider one, laid flat.

Llama Scope, Figure 7: UMAP keeps who is near whom; axes and distances mean nothing beyond that.
"""

from panscope.reporting import choice, style
from panscope.reporting.figure import Figure, Missing, Row, Spec
from panscope.reporting.geometry import findings, missing
from panscope.reporting.runs import Results

MOST = 6
ABREAST = 3
_ROLES = {"seed": "the latent", "own": "same coder", "other": "another coder", "wider": "a wider coder"}
_COLOURS = ("#111111", *style.named(3))
_MARKS = ("diamond", "circle", "triangle-up", "square")
_WHAT = "Each point is a direction near that of the latent in the heading, laid flat by UMAP."


def neighbourhoods(results: Results) -> Figure | Missing:
    """A panel a neighbourhood."""
    every = list(findings(results, "neighbourhood"))
    chosen = choice.spread(every, MOST)
    rows: list[Row] = []
    for finding in chosen:
        title = f"{finding.entry['coder']}, latent {finding.entry['latent']}"
        rows += [row | {"neighbourhood": title, "role": _ROLES[row["role"]]} for row in finding.table()]
    if not rows:
        return Missing(missing(results, "no neighbourhood of a latent is known"))
    roles = [role for role in _ROLES.values() if any(row["role"] == role for row in rows)]
    panels = [_panel(title, roles) for title in dict.fromkeys(row["neighbourhood"] for row in rows)]
    spec = {"concat": panels, "columns": ABREAST, "spacing": 20}
    note = choice.note(chosen, every, "neighbourhoods", then="the folder geometry/ has all")
    return Figure(rows, spec, f"{_WHAT} {note}".strip())


def _panel(title: str, roles: list[str]) -> Spec:
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
    encoding["color"] = {"field": "role", "type": "nominal", "scale": colours, "legend": {"title": "found in"}}
    encoding["shape"] = {"field": "role", "type": "nominal", "scale": marks, "legend": {"title": "found in"}}
    encoding["tooltip"] = [{"field": field, "type": "nominal", "title": words} for field, words in names]
    encoding["tooltip"] += [
        {"field": "cosine", "type": "quantitative", "title": "cosine to the latent", "format": ".3f"}
    ]
    mark = {"type": "point", "filled": True, "size": 70, "opacity": 0.85}
    chosen = [{"filter": {"field": "neighbourhood", "equal": title}}]
    size = {"width": style.panel_width(ABREAST), "height": 260, "title": {"text": title, **style.PANEL_TITLE}}
    return size | {"transform": chosen, "mark": mark, "encoding": encoding}
