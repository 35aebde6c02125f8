"""Every coder of the suite by layer: sparsity, explained variance and delta loss.

Llama Scope, Figure 10.
"""

from functools import partial

from panscope.reporting import charts
from panscope.reporting.axes import DELTA_LOSS, EXPLAINED, L0, LAYER
from panscope.reporting.figure import Figure, Missing
from panscope.reporting.rows import site_rows
from panscope.reporting.runs import Results


def by_layer(results: Results) -> Figure | Missing:
    """L0, explained variance and delta loss by layer."""
    rows = site_rows(results, ("l0", "explained_variance", "delta_loss"))
    if not rows:
        return Missing("no coder was evaluated", f"run `{results.measure}`")
    look = charts.Grid(
        x=LAYER,
        ys=(L0, EXPLAINED, DELTA_LOSS),
        looks=charts.by_architecture(rows),
        series=("variant",),
    )
    return Figure(rows, partial(charts.grid, rows, look))
