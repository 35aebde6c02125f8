"""Vega-Lite charts made of rows: panels beside each other for each place, one above the other for each quantity.

A chart names fields of rows and holds none of them (`figure.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from panscope.reporting import choice, style
from panscope.reporting.axes import Axis, domain, fitting
from panscope.reporting.figure import Row, Spec
from panscope.reporting.rows import places

HEIGHT = 190
ABREAST = 3
"""Quantities beside each other where there is only one place."""
_MOST_TICKS = 9
_PLAIN = Axis("", "").format
"""What Vega does better by itself on a linear axis."""
_THOUSANDS = "format(datum.value, ',')"
_GREY_SYMBOLS: Spec = {"symbolFillColor": "#4a5160", "symbolStrokeWidth": 0}
_GREY_LINES: Spec = {"symbolStrokeColor": "#4a5160", "symbolStrokeWidth": 1.6, "symbolSize": 500}
_MOST_LEGEND_COLUMNS = 4
_CHARACTER, _SYMBOL = 6.3, 38
"""Pixels of a legend's entry: for each character, and for its symbol with the space around it."""


@dataclass(frozen=True)
class Looks:
    """How the marks of a chart are told apart."""

    colour: Spec
    shape: Spec | None = None
    """Of points."""
    dash: Spec | None = None
    """Of lines."""

    def on(self, room: int) -> "Looks":
        """The same with legends that fit a page of so many pixels."""
        return Looks(
            fitting_legend(self.colour, room),
            self.shape and fitting_legend(self.shape, room),
            self.dash and fitting_legend(self.dash, room),
        )


@dataclass(frozen=True)
class Grid:
    """What a grid of panels shows."""

    x: Axis
    ys: tuple[Axis, ...]
    """One line of panels each."""
    looks: Looks
    series: tuple[str, ...] = ()
    """Points that have these fields in common are joined by a line; () joins none."""
    order: str | None = None
    """Along which field a line runs; None for x."""
    layers: bool = False
    """A line of panels for each layer, of the one quantity in `ys`."""
    points: bool = True
    own_scales: bool = False
    """Every place has y-scales of its own, for what cannot be compared between places."""
    rule: tuple[float, str] | None = None
    """A dashed line at a value of x, with its words."""
    levels: tuple[tuple[float, str], ...] = ()
    """A dashed line at a value of each of `ys`, with its words."""
    tooltip: tuple[Axis, ...] = ()
    """Quantities that hovering shows beside x and y."""


@dataclass(frozen=True)
class _Panel:
    """One panel: where it stands, and which rows it shows."""

    where: dict[str, Any]
    y: Axis
    level: tuple[float, str] | None
    heading: str
    """Its place, and its layer where the figure has several."""
    title: str
    """The heading, or nothing where the panel above it says it."""
    is_first: bool
    """In the first column, where the y-axis is named."""
    is_last: bool
    """In the last line, where the x-axis is named."""

    def of(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that it shows."""
        return [row for row in rows if all(row[name] == value for name, value in self.where.items())]


def grid(rows: Sequence[Row], look: Grid, room: int) -> Spec:
    """The chart for a page of so many pixels in width; an axis is logarithmic only where its values allow it.

    Each panel names its rows and its scales: Vega-Lite's own facets put a cell under a wrong heading where another is
    empty.
    """
    ys = tuple(fitting(y, rows) for y in look.ys)
    look = replace(look, x=fitting(look.x, rows), ys=ys, looks=look.looks.on(room))
    columns = places(rows)
    panels = _by_layer(rows, look, columns) if look.layers else _by_quantity(look, columns)
    if style.is_narrow(room):
        panels = _stacked(rows, panels)
    abreast = style.abreast(min(ABREAST, len(panels)) if _is_beside(look, columns) else len(columns), room)
    height = HEIGHT + 70 * (len(panels) <= abreast) - 40 * style.is_narrow(room)
    own = look.own_scales or _is_beside(look, columns)
    size = {"width": style.panel_width(abreast, room, between=45 if own else 18), "height": height}
    return {"concat": [size | _drawn(rows, look, panel) for panel in panels], "columns": abreast, "spacing": 16}


def _stacked(rows: Sequence[Row], panels: list[_Panel]) -> list[_Panel]:
    """Panels that stand one below the other: each says what it shows, and empty ones are left out."""
    own = [replace(panel, title=panel.heading, is_first=True, is_last=True) for panel in panels]
    return [panel for panel in own if any(row.get(panel.y.field) is not None for row in panel.of(rows))]


def _is_beside(look: Grid, columns: list[str]) -> bool:
    """Whether the quantities stand beside each other, since there is one place only."""
    return len(columns) == 1 and len(look.ys) > 1


def _by_quantity(look: Grid, columns: list[str]) -> list[_Panel]:
    levels, beside = look.levels or (None,) * len(look.ys), _is_beside(look, columns)
    return [
        _Panel(
            where={"place": place},
            y=y,
            level=level,
            heading=place,
            title=place if n == 0 or beside else "",
            is_first=beside or place == columns[0],
            is_last=beside or n == len(look.ys) - 1,
        )
        for n, (y, level) in enumerate(zip(look.ys, levels, strict=True))
        for place in columns
    ]


def _by_layer(rows: Sequence[Row], look: Grid, columns: list[str]) -> list[_Panel]:
    y, layers = look.ys[0], sorted({row["layer"] for row in rows})
    return [
        _Panel(
            {"place": place, "layer": layer},
            y,
            None,
            heading := f"{place}, layer {layer}",
            heading,
            place == columns[0],
            layer == layers[-1],
        )
        for layer in layers
        for place in columns
    ]


def _drawn(rows: Sequence[Row], look: Grid, panel: _Panel) -> Spec:
    """One panel; what is in it is chosen by its place."""
    here = panel.of(rows)
    scaled = here if look.own_scales else rows
    y_domain = domain(panel.y, scaled, [panel.level[0]] if panel.level else []) or domain(panel.y, rows)
    x: Spec = positional(look.x, domain(look.x, rows, [look.rule[0]] if look.rule else []))
    if look.x.format == "d":
        x["axis"]["values"] = choice.spread(sorted({row[look.x.field] for row in rows}), _MOST_TICKS)
    y: Spec = positional(panel.y, y_domain)
    if not panel.is_last:
        x["title"] = None
    if not panel.is_first:
        y["title"] = None
        y["axis"] |= {} if look.own_scales else {"labels": False, "ticks": False}
    behind = [level("x", *look.rule)] if look.rule else []
    behind += [level("y", *panel.level)] if panel.level else []
    marks = _marks(here, look, panel.y, {"x": x, "y": y, "color": look.looks.colour})
    filters = [{"filter": {"field": name, "equal": value}} for name, value in panel.where.items()]
    title = {"title": {"text": panel.title, **style.PANEL_TITLE}} if panel.title else {}
    return title | {"transform": filters, "layer": [*behind, *marks]}


def _marks(rows: Sequence[Row], look: Grid, y: Axis, across: Spec) -> list[Spec]:
    """Lines, then intervals, then points on top of them."""
    valid = {"filter": f"isValid(datum['{look.x.field}']) && isValid(datum['{y.field}'])"}
    tips = tooltip(rows, (look.x, y, *look.tooltip))
    marks: list[Spec] = []
    if look.series:
        line = across | {"detail": [{"field": name} for name in look.series]}
        line |= {"order": {"field": look.order or look.x.field, "type": "quantitative"}}
        line |= (
            {"strokeDash": look.looks.dash if look.points else _as_lines(look.looks.dash)} if look.looks.dash else {}
        )
        line |= {} if look.points else {"tooltip": tips}
        mark = {"type": "line", "strokeWidth": 1.6, "opacity": 0.75}
        marks.append({"transform": [valid], "mark": mark, "encoding": line})
    if any(row.get(f"{y.field}_low") is not None for row in rows):
        marks.append(_interval(rows, across, y))
    if look.points:
        point = across | {"tooltip": tips} | ({"shape": look.looks.shape} if look.looks.shape else {})
        mark = {"type": "point", "filled": True, "size": 46 if len(rows) < 200 else 24, "opacity": 0.9}
        marks.append({"transform": [valid], "mark": mark, "encoding": point})
    return marks


def _as_lines(dash: Spec) -> Spec:
    """Kinds of line whose legend shows lines, long enough to see which kind they are, as there are no points."""
    return dash | {"legend": dash["legend"] | _GREY_LINES if dash["legend"] else None}


def _interval(rows: Sequence[Row], across: Spec, y: Axis) -> Spec:
    """Thin lines from the low to the high end of the 95 % intervals; on a logarithmic axis they end above 0."""
    low, high = f"{y.field}_low", f"{y.field}_high"
    transform: list[Spec] = [{"filter": f"isValid(datum['{low}']) && isValid(datum['{high}'])"}]
    if y.log:
        floor = min(row[y.field] for row in rows if row.get(y.field) is not None) / 2
        transform += [{"calculate": f"max(datum['{end}'], {floor!r})", "as": end} for end in (low, high)]
    encoding = across | {"y": across["y"] | {"field": low}, "y2": {"field": high}}
    mark = {"type": "rule", "strokeWidth": 1, "opacity": 0.6}
    return {"transform": transform, "mark": mark, "encoding": encoding}


def positional(axis: Axis, limits: list[float] | None) -> Spec:
    """The encoding of an axis."""
    scale: Spec = {"type": "log"} if axis.log else {"type": "linear", "zero": False}
    scale |= {"nice": False} | ({"domain": limits} if limits else {})
    ticks: Spec = {"format": axis.format} if axis.log or axis.format != _PLAIN else {}
    ticks |= {} if axis.format == "d" else {"tickCount": 5}
    return {"field": axis.field, "type": "quantitative", "title": axis.title, "scale": scale, "axis": ticks}


def tooltip(rows: Sequence[Row], axes: Sequence[Axis]) -> list[Spec]:
    """Who a point is, then the quantities with their intervals; no two lines may have one title, or Vega drops one."""
    who = {"coder": "coder", "place": "site", "layer": "layer", "text": "series"}
    tips = [{"field": name, "type": "nominal", "title": words} for name, words in who.items() if _has(rows, name)]
    for axis in {axis.field: axis for axis in axes if axis.field not in who}.values():
        name = axis.title.partition(" (")[0]
        ends = {"": name, "_low": f"{name}, 95 % CI from", "_high": f"{name}, 95 % CI to"}
        fields = {f"{axis.field}{end}": words for end, words in ends.items()}
        shown = {field: words for field, words in fields.items() if _has(rows, field)}
        tips += [
            {"field": field, "type": "quantitative", "title": words, "format": ".4~g"} for field, words in shown.items()
        ]
    return tips


def _has(rows: Sequence[Row], name: str) -> bool:
    return any(row.get(name) is not None for row in rows)


def by_architecture(rows: Sequence[Row]) -> Looks:
    """Colours that tell architectures apart, marks and kinds of line that tell widths; of one architecture, colours
    that tell widths.
    """
    if len({row["family"] for row in rows}) == 1:
        return Looks(width_colour(rows))
    widths, title = sorted({row["width"] for row in rows}), "width (latents)"
    legend = {"title": title, "labelExpr": _THOUSANDS, **_GREY_SYMBOLS} if len(widths) > 1 else None
    of_widths = {"field": "width", "type": "nominal", "legend": legend}
    return Looks(
        colour=name_colour(rows, "family", "architecture"),
        shape=of_widths | {"scale": {"domain": widths, "range": style.shapes(widths)}},
        dash=of_widths | {"scale": {"domain": widths, "range": style.dashes(widths)}},
    )


def width_colour(rows: Sequence[Row]) -> Spec:
    """Colours that encode the width, dark to light."""
    widths = sorted({row["width"] for row in rows})
    return {
        "field": "width",
        "type": "ordinal",
        "scale": {"domain": widths, "range": style.ordered(len(widths))},
        "legend": {"title": "width (latents)", "labelExpr": _THOUSANDS},
    }


def name_colour(rows: Sequence[Row], name: str, title: str, colours: Sequence[str] = ()) -> Spec:
    """Colours for the values of a field without an order."""
    values = list(dict.fromkeys(row[name] for row in rows))
    scale = {"domain": values, "range": list(colours) or style.named(len(values))}
    return {"field": name, "type": "nominal", "scale": scale, "legend": {"title": title}}


def shape(rows: Sequence[Row], name: str, title: str) -> Spec:
    """Marks for the values of a field; without a legend where there is one value only."""
    values = list(dict.fromkeys(row[name] for row in rows))
    legend = {"title": title, **_GREY_SYMBOLS} if len(values) > 1 else None
    scale = {"domain": values, "range": style.shapes(values)}
    return {"field": name, "type": "nominal", "scale": scale, "legend": legend}


def dash(rows: Sequence[Row], name: str, title: str) -> Spec:
    """Kinds of line for the values of a field; without a legend where there is one value only."""
    marked = shape(rows, name, title)
    values = marked["scale"]["domain"]
    return marked | {"scale": {"domain": values, "range": style.dashes(values)}}


def fitting_legend(encoding: Spec, room: int) -> Spec:
    """An encoding whose legend has as many columns as its labels leave room for on a page of so many pixels."""
    if not encoding.get("legend"):
        return encoding
    longest = max(len(str(value)) for value in encoding["scale"]["domain"])
    columns = max(1, min(_MOST_LEGEND_COLUMNS, (room - 20) // round(longest * _CHARACTER + _SYMBOL)))
    return encoding | {"legend": encoding["legend"] | {"columns": columns}}


def level(axis: str, value: float, words: str) -> Spec:
    """A dashed line across a panel at a value of `axis`, 'x' or 'y', with words on it."""
    if axis == "x":
        place, end, beside = (
            {"x": {"datum": value}},
            {"y": {"value": 4}},
            {"align": "right", "dx": -4, "baseline": "top"},
        )
    else:
        place, end, beside = (
            {"y": {"datum": value}},
            {"x": {"value": "width"}},
            {"align": "right", "dx": -3, "baseline": "top", "dy": 3},
        )
    rule = {"mark": {"type": "rule", "strokeDash": [4, 3], "color": "#7b8494"}, "encoding": place}
    mark = {"type": "text", "text": words, "color": "#5b6473", "fontSize": 10, **beside}
    return {"data": {"values": [{}]}, "layer": [rule, {"mark": mark, "encoding": place | end}]}
