"""Colours, sizes and the look of all charts: told apart also by colour-blind readers, and on a white page."""

from collections.abc import Sequence
from typing import Any

PAGE_WIDTH = 1130
"""Pixels that the panels of a figure share on a wide screen."""
PHONE_WIDTH = 350
"""The same on a phone, where panels stand one below the other."""
_NARROW = 700
_FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"
_NAMED = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
"""For things without an order: the colours of Okabe and Ito, without yellow, which is lost on white."""
_ORDERED = ("#0D0887", "#4C02A1", "#7E03A8", "#A92395", "#CC4778", "#E56B5D", "#F89540", "#FDB42F")
"""For things with an order, such as widths: dark to light, alike in brightness for everybody."""
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [1, 3], [8, 2, 2, 2, 2, 2], [4, 6])
"""Kinds of line, a solid one first."""
SHAPES = ("circle", "triangle-up", "square", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")

_CONFIG: dict[str, Any] = {
    "font": _FONT,
    "background": "#ffffff",
    "padding": 4,
    "view": {"stroke": "#d9dde3", "strokeWidth": 1},
    "axis": {
        "domain": False,
        "gridColor": "#eceff3",
        "labelColor": "#4a5160",
        "labelFontSize": 11,
        "labelOverlap": "greedy",
        "tickColor": "#c5cad3",
        "tickSize": 4,
        "titleColor": "#272c36",
        "titleFontSize": 11,
        "titleFontWeight": 500,
        "titlePadding": 8,
    },
    "header": {"labelColor": "#272c36", "labelFontSize": 12, "labelFontWeight": 600, "titleFontSize": 12},
    "legend": {
        "labelColor": "#4a5160",
        "labelFontSize": 11,
        "labelLimit": 320,
        "titleLimit": 320,
        "layout": {"top": {"direction": "horizontal", "margin": 32, "anchor": "start"}},
        "orient": "top",
        "symbolSize": 70,
        "titleColor": "#272c36",
        "titleFontSize": 11,
        "titleFontWeight": 600,
    },
    "title": {"anchor": "start", "color": "#272c36", "fontSize": 15, "fontWeight": 600, "offset": 12},
}
DARK: dict[str, str] = {
    "#ffffff": "#1b1f25",
    "#d9dde3": "#3a404a",
    "#eceff3": "#2b3038",
    "#4a5160": "#b4bbc6",
    "#c5cad3": "#4a515d",
    "#272c36": "#e6e8ec",
    "#7b8494": "#8b94a3",
    "#5b6473": "#a2aab6",
    "#111111": "#f2f2f2",
    "#0072B2": "#4FA8E0",
    "#D55E00": "#F0792B",
    "#009E73": "#22BF92",
    "#7A5195": "#B08BD0",
    "#4D4D4D": "#B0B0B0",
    "#0D0887": "#6A6BFF",
    "#4C02A1": "#8D5CF0",
    "#7E03A8": "#B04FE0",
    "#A92395": "#CC55BE",
}
"""What takes the place of each colour on a page with a dark background."""
PANEL_TITLE: dict[str, Any] = {"anchor": "middle", "frame": "group", "fontSize": 12, "offset": 6}


def named(count: int) -> list[str]:
    """Colours for so many things without an order; more than eight come round again."""
    return [_NAMED[n % len(_NAMED)] for n in range(count)]


def ordered(count: int) -> list[str]:
    """Colours for so many steps of something with an order."""
    if count <= 2:
        return list(_NAMED[:count])
    return [_ORDERED[round(n * (len(_ORDERED) - 1) / (count - 1))] for n in range(count)]


def shapes(things: Sequence[Any]) -> list[str]:
    """A mark for each thing; more than eight come round again."""
    return [SHAPES[n % len(SHAPES)] for n in range(len(things))]


def dashes(things: Sequence[Any]) -> list[list[int]]:
    """A kind of line for each thing; more than eight come round again."""
    return [_DASHES[n % len(_DASHES)] for n in range(len(things))]


def config(room: int) -> dict[str, Any]:
    """The look of a chart on a page of so many pixels; on a narrow one legends stand one below the other."""
    if not is_narrow(room):
        return _CONFIG
    layout = {"top": {"direction": "vertical", "margin": 10, "anchor": "start"}}
    limits = {"labelLimit": room - 50, "titleLimit": room - 20}
    return _CONFIG | {"legend": _CONFIG["legend"] | limits | {"layout": layout}}


def is_narrow(room: int) -> bool:
    """Whether a page of so many pixels has room for one panel only."""
    return room < _NARROW


def abreast(wanted: int, room: int) -> int:
    """How many panels stand beside each other on a page of so many pixels."""
    return 1 if is_narrow(room) else max(1, wanted)


def panel_width(columns: int, room: int, largest: int = 480, between: int = 18) -> int:
    """The width of one of so many panels beside each other on a page, with so many pixels between two."""
    return max(130, min(largest, (room - 70) // columns - between))
