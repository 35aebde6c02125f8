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
    spec: Callable[[int], Spec]
    """The Vega-Lite chart of the data, which it does not hold itself, for a page of so many pixels in width."""
    note: str = ""
    """What is special about this drawing, such as what was left out of it."""
    drawn: list[Row] | None = None
    """The rows that are drawn, where they are not all of them."""


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn from these results."""

    what: str
    """What is missing, as a clause: 'the coders were not evaluated by position'."""
    remedy: str
    """What to do about it, with commands between backticks: 'run `panscope eval RUN`'."""

    @property
    def reason(self) -> str:
        """Both in one line."""
        return f"{self.what}; {self.remedy}"


@dataclass(frozen=True)
class Plot:
    """An entry of the table of figures."""

    key: str
    """Names its files."""
    group: str
    """The part of the page it stands in."""
    title: str
    look: str
    """One sentence: how to read it."""
    stands_for: str
    """The figures of the papers that it corresponds to."""
    draw: Callable[[Results], Figure | Missing]
