"""How often latents fire: histograms over the latents of a coder, and how many are dead or dense.

Gemma Scope, Figure 5; Llama Scope, Figure 4 and section 4.4, where at most 10 % inactive latents (no firing in 100,000
tokens) and at most 2 % ultra-active ones (on more than a tenth of the tokens) are aimed at.
"""

import itertools
from functools import partial
from typing import Any

from panscope.reporting import charts, choice
from panscope.reporting.axes import LAYER, Axis
from panscope.reporting.figure import Figure, Missing, Row
from panscope.reporting.rows import at_layer, coder_of, coder_rows, site_rows
from panscope.reporting.runs import Results

FREQUENCY = Axis("frequency", "firing frequency (share of tokens)", log=True, format="~e")
DENSITY = Axis("density", "density (share of latents per factor of 10)")
_WINDOW = 100_000


def histogram(results: Results) -> Figure | Missing:
    """Latents by their firing frequency."""
    every = [row for row in coder_rows(results) if _found(results, row)]
    chosen = choice.at_middle_layers(every)
    rows = [row for one in every for row in _bins(results, one)]
    if not rows:
        return Missing("no evaluation has a histogram of firing frequencies", f"run `{results.measure}`")
    names = {row["coder"] for row in chosen}
    shown = at_layer(_without_empty_ends([row for row in rows if row["coder"] in names]))
    look = charts.Grid(
        x=FREQUENCY,
        ys=(DENSITY,),
        looks=charts.by_architecture(shown),
        series=("coder",),
        points=False,
        rule=(0.1, "dense"),
        tooltip=(Axis("never_share", "share that never fired"),),
    )
    note = choice.note(chosen, every, "coders, at the middle layer")
    return Figure(rows, partial(charts.grid, shown, look), note, shown)


def _found(results: Results, one: Row) -> dict[str, Any]:
    """The histogram of a coder; {} where it has none."""
    drawn = results.drawn(coder_of(results, one))
    return {} if drawn is None else drawn.content.get("frequency") or {}


def _without_empty_ends(rows: list[Row]) -> list[Row]:
    """The bins from the first to the last that holds a latent of any coder."""
    held = [row["frequency"] for row in rows if row["latents"]]
    return [row for row in rows if held and min(held) <= row["frequency"] <= max(held)]


def _bins(results: Results, one: Row) -> list[Row]:
    found = _found(results, one)
    edges, counts, width = found["log10_edges"], found["latents"], one["width"]
    return [
        one
        | {"frequency": 10 ** ((low + high) / 2), "log10_low": low, "log10_high": high, "latents": count}
        | {"density": count / width / (high - low), "never_share": found["never"] / width}
        for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True)
    ]


def dead_and_dense(results: Results) -> Figure | Missing:
    """The shares of latents that never fire and that fire too often, by layer."""
    rows = site_rows(results, ("dead_fraction", "dense_fraction"))
    if not rows:
        return Missing("no coder was evaluated", f"run `{results.measure}`")
    for row in rows:
        content = coder_of(results, row).evaluations[results.label].content
        row["inactive"] = content.get("never_fired", {}).get(str(_WINDOW))
        row["window"] = _WINDOW if row["inactive"] is not None else content.get("dead_window")
        row["inactive"] = row["dead_fraction"] if row["inactive"] is None else row["inactive"]
    windows = sorted({row["window"] for row in rows if row["window"] is not None})
    look = charts.Grid(
        x=LAYER,
        ys=(
            Axis("inactive", "never fired (share of latents)", format="~%"),
            Axis("dense_fraction", "dense (share of latents)", format="~%"),
        ),
        looks=charts.by_architecture(rows),
        series=("variant",),
        levels=((0.1, "10 %"), (0.02, "2 %")),
    )
    note = f"Latents are dead if they did not fire on {' or '.join(f'{n:,}' for n in windows)} tokens."
    return Figure(rows, partial(charts.grid, rows, look), note)
