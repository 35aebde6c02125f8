"""A coder of several layers, layer by layer: FVU, MSE, L1, the rise of the loss and KL.

Multi-Layer SAE, Figures 8 to 10; coders of one layer at the same kind of site are shown for comparison.
"""

from functools import partial

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
            "no coder of several layers was evaluated",
            f'train one with `wiring = "multilayer"`, or run `{results.measure}`',
        )
    rows = [row for row in every if row["place"] in shared]
    several = [row for row in rows if WIRINGS[row["wiring"]].has_several_sites]
    alone = [row for row in rows if row not in several and not WIRINGS[row["wiring"]].predicts_other]
    drawn = choice.few_variants(several, 6) + choice.few_variants(alone, 2)
    look = charts.Grid(
        x=LAYER,
        ys=(FVU, MSE, L1, DELTA_LOSS, KL),
        looks=charts.Looks(charts.name_colour(drawn, "variant", "coder"), charts.shape(drawn, "variant", "coder")),
        series=("variant",),
    )
    note = choice.note({row["variant"] for row in drawn}, {row["variant"] for row in rows}, "coder configurations")
    return Figure(rows, partial(charts.grid, drawn, look), note, drawn)
