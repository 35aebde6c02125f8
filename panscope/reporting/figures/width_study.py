"""Feature splitting: the trade-off of dictionaries of several widths at one site, everything else equal.

Gemma Scope, Figure 4.
"""

from functools import partial

from panscope.reporting import charts, choice
from panscope.reporting.axes import DELTA_LOSS, FVU, L0
from panscope.reporting.figure import Figure, Missing, Row
from panscope.reporting.figures.trade_off import SERIES
from panscope.reporting.rows import at_layer, site_rows
from panscope.reporting.runs import Results

MOST_SITES = 3


def width_study(results: Results) -> Figure | Missing:
    """Delta loss and FVU against L0 at the sites with the most widths."""
    rows = [row for row in site_rows(results, ("l0", "delta_loss", "fvu")) if row["l0"] is not None]
    ladders = _ladders(rows)
    if not ladders:
        return Missing("no site has coders of two widths", "list several in `width` of a suite file and train them")
    drawn = [row for site in ladders for row in rows if row["site"] == site]
    look = charts.Grid(
        x=L0,
        ys=(DELTA_LOSS, FVU),
        looks=charts.by_architecture(drawn),
        series=SERIES,
        order="l0",
    )
    shown = at_layer(drawn)
    every = [row["site"] for row in rows if row["site"] not in ladders]
    note = choice.note(ladders, ladders + list(dict.fromkeys(every)), "sites, those with the most widths")
    return Figure(rows, partial(charts.grid, shown, look), note, shown)


def _ladders(rows: list[Row]) -> list[str]:
    """One site of every kind: the middle one of those with the most widths; kinds with the most widths first."""
    widths: dict[str, set[int]] = {}
    for row in rows:
        widths.setdefault(row["site"], set()).add(row["width"])
    most = max((len(found) for found in widths.values()), default=0)
    if most < 2:
        return []
    kinds: dict[str, list[str]] = {}
    for site, found in widths.items():
        if len(found) == most:
            kinds.setdefault(site.partition(".")[2], []).append(site)
    return [choice.spread(sites, 1)[0] for sites in kinds.values()][:MOST_SITES]
