"""Sparsity against fidelity: one point a coder, coders that differ in sparsity alone joined by a line.

Gemma Scope, Figures 2 (delta loss) and 13 (FVU); Llama Scope, Figure 2.
"""

from functools import partial

from panscope.reporting import charts, choice
from panscope.reporting.axes import DELTA_LOSS, FVU, L0, Axis
from panscope.reporting.figure import Figure, Missing
from panscope.reporting.rows import site_rows
from panscope.reporting.runs import Results

SERIES = ("family", "width", "layer", "run")


def delta_loss(results: Results) -> Figure | Missing:
    """Delta loss against L0."""
    return _trade_off(results, DELTA_LOSS)


def fvu(results: Results) -> Figure | Missing:
    """FVU against L0."""
    return _trade_off(results, FVU)


def _trade_off(results: Results, y: Axis) -> Figure | Missing:
    rows = [row for row in site_rows(results, ("l0", y.field)) if row["l0"] is not None and row[y.field] is not None]
    if not rows:
        return Missing(f"no coder has l0 and {y.field}", f"run `{results.measure}`")
    layers = choice.few_layers(rows)
    drawn = [row for row in rows if row["layer"] in layers]
    look = charts.Grid(
        x=L0,
        ys=(y,),
        looks=charts.by_architecture(drawn),
        series=SERIES,
        order="l0",
        layers=True,
    )
    every = sorted({row["layer"] for row in rows})
    note = choice.note(layers, every, "layers")
    return Figure(rows, partial(charts.grid, drawn, look), note, drawn)
