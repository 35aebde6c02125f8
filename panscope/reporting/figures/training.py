"""How training went: loss figures of the log by rows seen; and what annealing K does.

Llama Scope, Figure 12: with K falling from D, every latent is active from the start.
"""

from collections.abc import Callable
from functools import partial

from panscope.reporting import charts, choice
from panscope.reporting.axes import FVU, L0, Axis
from panscope.reporting.figure import Figure, Missing, Row
from panscope.reporting.rows import at_layer, coder_of, coder_rows
from panscope.reporting.runs import CoderResults, Results

ROWS = Axis("rows", "rows trained on", format="~s")
DEAD = Axis("dead_fraction", "dead (share of latents)")
MOST_STEPS = 100
_LOGGED = ("step", "rows", "fvu", "l0", "dead_fraction", "dead_window", "loss", "sparsity")


def curves(results: Results) -> Figure | Missing:
    """FVU, L0 and dead latents over training."""
    rows = _logged(results, _everyone)
    if not rows:
        return Missing("no run has a training log (train.jsonl)", "train with `panscope train`")
    drawn, note = _few(rows)
    look = charts.Grid(
        x=ROWS,
        ys=(FVU, L0, DEAD),
        looks=charts.by_architecture(drawn),
        series=("coder",),
        points=False,
    )
    return Figure(rows, partial(charts.grid, drawn, look), note, drawn)


def annealing(results: Results) -> Figure | Missing:
    """FVU and dead latents of coders that select K, with and without annealing."""
    selecting = [coder for coder in results.coders() if coder.facts.sparsity_means == "K"]
    kinds = {_annealed(coder) for coder in selecting}
    if len(kinds) < 2:
        return _not_compared(kinds)
    rows = _logged(results, lambda coder: coder.facts.sparsity_means == "K")
    drawn, note = _few(rows)
    look = charts.Grid(
        x=ROWS,
        ys=(FVU, DEAD),
        looks=charts.Looks(charts.name_colour(drawn, "text", "K")),
        series=("coder",),
        points=False,
    )
    return Figure(rows, partial(charts.grid, drawn, look), note, drawn)


def _not_compared(kinds: set[bool]) -> Missing:
    """Why there is nothing to compare: coders that select K are all annealed, or none of them is, or none is there."""
    if not kinds:
        return Missing("no coder selects K", 'train some with `architecture = "topk"`, with and without annealing')
    lacks = "`sparsity_warmup_steps = 0`" if True in kinds else '`sparsity_from = "d_in"` and `sparsity_warmup_steps`'
    there = "with" if True in kinds else "without"
    return Missing(
        f"all TopK coders were trained {there} annealing K", f"train the same with {lacks} and a `tag` as well"
    )


def _everyone(coder: CoderResults) -> bool:
    return True


def _annealed(coder: CoderResults) -> bool:
    begin = coder.facts.sparsity_from
    return begin is not None and coder.facts.sparsity is not None and begin > coder.facts.sparsity


def _logged(results: Results, wanted: Callable[[CoderResults], bool]) -> list[Row]:
    """The lines of every wanted coder, at most 100 each."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for run in results.runs:
        for line in run.log:
            lines.setdefault((run.name, line["coder"]), []).append(line)
    rows: list[Row] = []
    for who in coder_rows(results):
        coder = coder_of(results, who)
        if wanted(coder):
            kind = {"text": "annealed" if _annealed(coder) else "constant"}
            found = choice.spread(lines.get((coder.facts.run, coder.facts.name), []), MOST_STEPS)
            rows += [who | kind | _figures(line) for line in found]
    return rows


def _figures(line: Row) -> Row:
    return {name: line.get(name) for name in _LOGGED}


def _few(rows: list[Row]) -> tuple[list[Row], str]:
    """The lines of the coders of the middle layers, and a sentence on that."""
    coders = list({row["coder"]: row for row in rows}.values())
    chosen = choice.at_middle_layers(coders)
    names = {row["coder"] for row in chosen}
    note = choice.note(chosen, coders, "coders, at the middle layer")
    return at_layer(row for row in rows if row["coder"] in names), note
