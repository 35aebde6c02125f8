"""What a figure is: its data, how it is drawn, and what a reader should look for; or why it is not there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from panscope.reporting.runs import Results

Row = dict[str, Any]
"""One row of a figure's data: a line of its CSV file."""
Spec = dict[str, Any]
"""A Vega-Lite chart without its data."""


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn."""

    rows: list[Row]
    """Its data, all of it: what its CSV file holds."""
    spec: Spec
    """A Vega-Lite chart of the data, which it does not hold itself."""
    note: str = ""
    """What is special about this drawing, such as what was left out of it."""
    drawn: list[Row] | None = None
    """The rows that are drawn, where they are not all of them."""


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn from these results."""

    reason: str
    """What is not there, and which command would make it."""


@dataclass(frozen=True)
class Plot:
    """An entry of the table of figures."""

    key: str
    """Names its files."""
    group: str
    """The part of the page it stands in."""
    title: str
    look: str
    """One sentence: what to look for."""
    stands_for: str
    """The figures of the papers that it corresponds to."""
    draw: Callable[[Results], Figure | Missing]
