"""Tables of results, drawn as Markdown so that they can be pasted into docs/."""

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table


def markdown_table(columns: Iterable[str], title: str | None = None) -> Table:
    """An empty table with these column headings."""
    table = Table(title=title, box=box.MARKDOWN)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def wide_console() -> Console:
    """A console wide enough for every table of the benchmarks, whatever the terminal's width."""
    return Console(width=160)
