"""Delta loss on each part of a text that has several, such as books, code and news.

Gemma Scope, Figure 9: which kinds of text coders explain well.
"""

from functools import partial

from panscope.reporting import charts, choice, style
from panscope.reporting.axes import DELTA_LOSS, domain, fitting
from panscope.reporting.figure import Figure, Missing, Row, Spec
from panscope.reporting.rows import identity, in_order, measured, places
from panscope.reporting.runs import Results

_MOST_NAME = 60
"""Pixels that the name of a subset takes of a narrow page, beyond those of an axis with numbers."""


def subsets(results: Results) -> Figure | Missing:
    """Delta loss by subset of the text."""
    rows = _rows(results)
    if not rows:
        return Missing(
            "no evaluation is of a text with several subsets",
            f"run `panscope eval {results.folder} --text FILE FILE --label text`",
        )
    drawn = choice.few_variants(rows)
    note = choice.note({row["variant"] for row in drawn}, {row["variant"] for row in rows}, "coder configurations")
    return Figure(rows, partial(_panels, drawn), note, drawn)


def _panels(rows: list[Row], room: int) -> Spec:
    """A panel for each place; only those at the left name the subsets."""
    every = places(rows)
    abreast = style.abreast(len(every), room)
    names = _MOST_NAME if style.is_narrow(room) else 0
    size = {"width": style.panel_width(abreast, room) - names, "height": {"step": 44, "for": "position"}}
    panels = [size | _panel(rows, place, room, is_first=n % abreast == 0) for n, place in enumerate(every)]
    return {"concat": panels, "columns": abreast, "spacing": 16}


def _panel(rows: list[Row], place: str, room: int, *, is_first: bool) -> Spec:
    """The subsets below each other, each with a point a coder."""
    axis = fitting(DELTA_LOSS, rows)
    y: Spec = {
        "field": "text",
        "type": "nominal",
        "title": None,
        "sort": list(dict.fromkeys(row["text"] for row in rows)),
    }
    y["axis"] = {"grid": True, "labels": is_first, "ticks": is_first}
    y["axis"] |= {"labelLimit": _MOST_NAME + 50} if style.is_narrow(room) else {}
    encoding = {
        "x": charts.positional(axis, domain(axis, rows)),
        "y": y,
        "yOffset": {"field": "variant"},
        "color": charts.fitting_legend(charts.name_colour(rows, "variant", "coder"), room),
        "tooltip": charts.tooltip(rows, (axis,)),
    }
    mark = {"type": "point", "filled": True, "size": 40, "opacity": 0.85}
    chosen = [{"filter": {"field": "place", "equal": place}}, {"filter": "isValid(datum.delta_loss)"}]
    return {"title": {"text": place, **style.PANEL_TITLE}, "transform": chosen, "mark": mark, "encoding": encoding}


def _rows(results: Results) -> list[Row]:
    """A row for each coder, label and subset; a subset that is a file goes by the file's name."""
    several, rows = len(results.runs) > 1, []
    for coder in results.coders():
        for label, evaluation in coder.evaluations.items():
            for subset, numbers in evaluation.content.get("subsets", {}).items():
                who = identity(coder.facts, coder.facts.sites[0], several=several)
                rows.append(
                    who
                    | {"label": label, "subset": subset, "text": subset.rpartition("/")[2]}
                    | measured(numbers, ("delta_loss", "fvu", "l0"))
                )
    return in_order(rows)
