"""Colours, sizes and the look of all charts: told apart also by colour-blind readers, and on a white page."""

from collections.abc import Sequence
from typing import Any

PAGE_WIDTH = 1130
"""Pixels that the panels of a figure share."""
_FONT = "system-ui, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"
_NAMED = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#4D4D4D")
"""For things without an order: the colours of Okabe and Ito, without yellow, which is lost on white."""
_ORDERED = ("#0D0887", "#4C02A1", "#7E03A8", "#A92395", "#CC4778", "#E56B5D", "#F89540", "#FDB42F")
"""For things with an order, such as widths: dark to light, alike in brightness for everybody."""
SHAPES = ("circle", "triangle-up", "square", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")

CONFIG: dict[str, Any] = {
    "font": _FONT,
    "background": "white",
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
PANEL_TITLE: dict[str, Any] = {"anchor": "middle", "frame": "group", "fontSize": 12, "offset": 6}


def named(count: int) -> list[str]:
    """Colours for so many things without an order; more than eight come round again."""
    return [_NAMED[n % len(_NAMED)] for n in range(count)]


def ordered(count: int) -> list[str]:
    """Colours for so many steps of something with an order."""
    if count <= 2:
        return list(_NAMED[:count])
    return [_ORDERED[round(n * (len(_ORDERED) - 1) / (count - 1))] for n in range(count)]


def shapes(things: Sequence[str]) -> list[str]:
    """A mark for each thing; more than eight come round again."""
    return [SHAPES[n % len(SHAPES)] for n in range(len(things))]


def panel_width(columns: int, largest: int = 480, between: int = 18) -> int:
    """The width of one of so many panels beside each other, with so many pixels between two."""
    return max(130, min(largest, (PAGE_WIDTH - 70) // max(1, columns) - between))
