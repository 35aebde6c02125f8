"""The table of results as HTML, with one menu per property by which its rows can be filtered.

Without JavaScript every row is shown; `page.js` sorts, filters and shortens the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from panscope.reporting.figure import Row
from panscope.reporting.markup import text
from panscope.reporting.runs import Results
from panscope.reporting.table import COLUMNS, TableColumn, table_rows

FIRST_ROWS = 25
"""Rows that are shown before the reader asks for all of them."""


@dataclass(frozen=True)
class Filter:
    """A menu above the table."""

    field: str
    """The field of a row, and the name of the row's data attribute."""
    title: str
    every: str
    """Its first entry, which selects all rows."""


FILTERS = (
    Filter("run", "Run", "all runs"),
    Filter("place", "Site", "all sites"),
    Filter("layers", "Layer", "all layers"),
    Filter("width", "Width", "all widths"),
    Filter("architecture", "Architecture", "all architectures"),
)


def results_section(results: Results) -> str:
    """The section of the page that holds the table."""
    rows = table_rows(results)
    menus = "".join(_menu(one, rows) for one in FILTERS)
    heads = "".join(_heading(column) for column in COLUMNS)
    body = "".join(_row(row) for row in rows)
    return (
        '<section id="results-section"><h2>Results</h2><div class="card">'
        '<form class="tools" id="filters" role="search">'
        f'{menus}<label>Search<input id="search" type="search" placeholder="such as: L03 topk"></label>'
        '<button type="reset" hidden>Clear filters</button></form>'
        '<p class="count"><span id="shown" role="status"></span><span>Click a heading to sort.</span>'
        '<a href="figures/results.csv">CSV</a></p>'
        '<div class="scroll" role="region" aria-label="results" tabindex="0">'
        f'<table id="results" data-first="{FIRST_ROWS}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        '</div><button type="button" class="more" id="more" aria-controls="results" hidden></button></div></section>'
    )


def _menu(one: Filter, rows: Sequence[Row]) -> str:
    """A menu of the values that occur; nothing where there is only one, as that filters nothing."""
    values = {value for row in rows for value in _values(row, one)}
    if len(values) < 2:
        return ""
    ordered = sorted(values, key=lambda value: (not value.isdigit(), int(value) if value.isdigit() else 0, value))
    entries = "".join(f'<option value="{text(value)}">{text(_written(value))}</option>' for value in ordered)
    menu = f'<select name="{one.field}"><option value="">{one.every}</option>{entries}</select>'
    return f"<label>{one.title}{menu}</label>"


def _values(row: Row, one: Filter) -> list[str]:
    """What a row has of a property, as text: a coder of several layers has several."""
    return str(row[one.field]).split() if one.field == "layers" else [str(row[one.field])]


def _written(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value


def _heading(column: TableColumn) -> str:
    button = f'<button type="button" title="{text(column.meaning)}">{text(column.title)}</button>'
    return f'<th class="{column.style}" scope="col">{button}</th>'


def _row(row: Row) -> str:
    data = "".join(f' data-{one.field}="{text(row[one.field])}"' for one in FILTERS)
    return f"<tr{data}>{''.join(_cell(row, column) for column in COLUMNS)}</tr>"


def _cell(row: Row, column: TableColumn) -> str:
    value, (low, high) = row.get(column.field), (row.get(f"{column.field}_low"), row.get(f"{column.field}_high"))
    about = f' data-about="{text(row["where"])}; {text(row["variant"])}"' if column.field == "coder" else ""
    if value is None:
        return f'<td class="{column.style}" data-value="">–</td>'
    tip = (
        f' title="95 % confidence interval: {column.written(low)} to {column.written(high)}"'
        if low is not None and high is not None
        else ""
    )
    key = f' data-value="{text(value)}"' if "number" in column.style else ""
    return f'<td class="{column.style}"{key}{about}{tip}>{text(column.written(value))}</td>'
