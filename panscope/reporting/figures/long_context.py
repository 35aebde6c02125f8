"""Sequences longer than those that coders learned from: reconstruction loss and L0 by position.

Llama Scope, Figure 5: trained on 1,024 tokens, measured on 8,192.
"""

from functools import partial

from panscope.reporting import charts, choice
from panscope.reporting.axes import L0_LINEAR, Axis
from panscope.reporting.figure import Figure, Missing
from panscope.reporting.figures.positions import NOTE, PLACE, position_rows
from panscope.reporting.rows import at_layer, site_rows
from panscope.reporting.runs import Results


def long_context(results: Results) -> Figure | Missing:
    """MSE and L0 by position under the label with the longest context."""
    trained = max((run.suite.get("data", {}).get("context") or 0 for run in results.runs), default=0)
    contexts = {
        evaluation.about.get("context", 0): label
        for coder in results.coders()
        for label, evaluation in coder.evaluations.items()
    }
    longest = max(contexts, default=0)
    if longest <= trained:
        return Missing(
            f"no evaluation has sequences longer than the {trained} tokens of training",
            f"run `panscope eval {results.folder} --text FILE --packing stream --context N --label long`",
        )
    every = site_rows(results, ("mse", "l0"), contexts[longest])
    chosen = choice.at_middle_layers(every)
    rows = position_rows(results, chosen, contexts[longest])
    if not rows:
        return Missing(f"the evaluation {contexts[longest]!r} has no positions", "repeat it with `panscope eval`")
    shown = at_layer(rows)
    look = charts.Grid(
        x=PLACE,
        ys=(Axis("mse", "MSE (per entry)"), L0_LINEAR),
        looks=charts.Looks(charts.name_colour(shown, "variant", "coder")),
        series=("coder",),
        points=False,
        own_scales=True,
        rule=(trained, "training context"),
    )
    note = f"{NOTE} Evaluation {contexts[longest]!r}: sequences of up to {longest:,} tokens."
    return Figure(rows, partial(charts.grid, shown, look), note, shown)
