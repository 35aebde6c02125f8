"""How well coders do by the token's place in its sequence, in about 100 bins that widen with it.

Gemma Scope, Figures 3 (reconstruction loss) and 15 (delta loss).
"""

from functools import partial

from panscope.reporting import charts, choice
from panscope.reporting.axes import MSE, Axis
from panscope.reporting.binning import binned
from panscope.reporting.figure import Figure, Missing, Row
from panscope.reporting.rows import at_layer, coder_of, identity, site_rows
from panscope.reporting.runs import Results

PLACE = Axis("place_in_sequence", "position in the sequence (from 1)", log=True, format="~s")
NOTE = "Positions are averaged in at most 100 bins that widen with the position; positions.parquet has every position."


def reconstruction(results: Results) -> Figure | Missing:
    """Reconstruction loss by position."""
    return _by_position(results, Axis("mse", "reconstruction loss (MSE per entry)"))


def delta_loss(results: Results) -> Figure | Missing:
    """Delta loss by position."""
    return _by_position(results, Axis("delta_loss", "delta loss (nats per token)"))


def _by_position(results: Results, y: Axis) -> Figure | Missing:
    every = site_rows(results, (y.field,))
    chosen = choice.at_middle_layers(every)
    rows = position_rows(results, chosen, results.label)
    if not rows:
        return Missing("the coders were not evaluated by position", f"run `{results.measure}`")
    shown = at_layer(rows)
    look = charts.Grid(
        x=PLACE,
        ys=(y,),
        looks=charts.Looks(charts.name_colour(shown, "variant", "coder")),
        series=("coder",),
        points=False,
        own_scales=y.field == MSE.field,
    )
    return Figure(rows, partial(charts.grid, shown, look), _note(chosen, every), shown)


def _note(chosen: list[Row], every: list[Row]) -> str:
    shown = f" Shown: {len(chosen)} of {len(every)} coders, at the middle layer." if len(chosen) < len(every) else ""
    return NOTE + shown


def position_rows(results: Results, chosen: list[Row], label: str) -> list[Row]:
    """The binned positions of the chosen coders under a label; none of a coder that was not measured by position."""
    rows = []
    for one in chosen:
        coder = coder_of(results, one)
        table = coder.evaluations[label].table("positions") if label in coder.evaluations else None
        if table is not None:
            site = next(site for site in coder.facts.sites if str(site) == one["site"])
            who = identity(coder.facts, site, several=len(results.runs) > 1)
            rows += [who | {"text": label} | bin for bin in binned([row for row in table if row["site"] == str(site)])]
    return rows
