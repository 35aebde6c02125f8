"""A coder of several layers, layer by layer: FVU, MSE, L1, the rise of the loss and KL.

Multi-Layer SAE, Figures 8 to 10; coders of one layer at the same kind of site stand beside them for comparison.
"""

from panscope.coders.wiring import WIRINGS
from panscope.reporting import charts, choice
from panscope.reporting.axes import DELTA_LOSS, FVU, KL, L1, LAYER, MSE
from panscope.reporting.figure import Figure, Missing
from panscope.reporting.rows import site_rows
from panscope.reporting.runs import Results


def per_layer(results: Results) -> Figure | Missing:
    """Five quantities by layer."""
    every = site_rows(results, ("fvu", "mse", "l1", "delta_loss", "kl"))
    shared = {row["place"] for row in every if WIRINGS[row["wiring"]].has_several_sites}
    if not shared:
        return Missing(
            'no coder of several layers was measured: train one with `wiring = "multilayer"` in a suite file, or '
            f"measure it by `{results.measure}`"
        )
    rows = [row for row in every if row["place"] in shared]
    several = [row for row in rows if WIRINGS[row["wiring"]].has_several_sites]
    alone = [row for row in rows if row not in several and not WIRINGS[row["wiring"]].predicts_other]
    drawn = choice.few_variants(several, 6) + choice.few_variants(alone, 2)
    look = charts.Grid(
        x=LAYER,
        ys=(FVU, MSE, L1, DELTA_LOSS, KL),
        colour=charts.name_colour(drawn, "variant", "coder"),
        shape=charts.shape(drawn, "variant", "coder"),
        series=("variant",),
    )
    note = choice.note({row["variant"] for row in drawn}, {row["variant"] for row in rows}, "kinds of coder")
    return Figure(rows, charts.grid(drawn, look), note, drawn)
