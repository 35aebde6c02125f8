"""How near a coder's directions lie to each other: the mean largest cosine of a latent to another of the same coder.

Multi-Layer SAE (MMCS); Llama Scope, section 4.6, for what random directions give and the Johnson-Lindenstrauss bound.
"""

from functools import partial
from typing import Any

from panscope.reporting import charts
from panscope.reporting.axes import LAYER, Axis
from panscope.reporting.figure import Figure, Missing, Row
from panscope.reporting.geometry import findings, missing
from panscope.reporting.rows import coder_of, coder_rows
from panscope.reporting.runs import Results

_COSINE = Axis("mean", "mean largest cosine")


def dictionaries(results: Results) -> Figure | Missing:
    """MMCS by layer, beside chance."""
    known = {
        (f.run.name, name): numbers for f in findings(results, "mmcs") for name, numbers in _coders(f.entry).items()
    }
    rows: list[Row] = []
    for who in coder_rows(results):
        facts = coder_of(results, who).facts
        if (facts.run, facts.name) in known:
            rows.append(who | _numbers(known[facts.run, facts.name]))
    if not rows:
        return missing(results, "the latents of no coder were compared with each other")
    look = charts.Grid(
        x=LAYER,
        ys=(_COSINE,),
        looks=charts.by_architecture(rows),
        series=("variant",),
        tooltip=(Axis("random_mean", "random directions"), Axis("jl", "Johnson-Lindenstrauss bound")),
    )
    chance = sorted({f"{row['random_mean']:.2f}" for row in rows if row["random_mean"] is not None})
    note = f"As many random directions of the same dimension give {' to '.join(chance[:1] + chance[1:][-1:])}."
    note = note if chance else ""
    return Figure(rows, partial(charts.grid, rows, look), note)


def _coders(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: numbers for name, numbers in entry["numbers"].items() if isinstance(numbers, dict)}


def _numbers(numbers: dict[str, Any]) -> Row:
    row: Row = {name: numbers.get(name) for name in ("mean", "sem", "random_mean", "random_max", "jl", "above_random")}
    mean, sem = row["mean"], row["sem"]
    ends = (None, None) if mean is None or sem is None else (mean - 1.96 * sem, mean + 1.96 * sem)
    return row | {"mean_low": ends[0], "mean_high": ends[1]}
