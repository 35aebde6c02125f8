"""Whether the papers' findings hold on a sweep over sparsity and width that was trained and evaluated before.

    python -m benchmarks.quality.findings runs/sweep

prints a Markdown table for each finding and writes no file:

- Wider is better at equal L0 (Gemma Scope Figure 4, Llama Scope Figure 2): delta loss and FVU of the wide coder,
  interpolated to the narrow one's L0 (linearly between logarithms), over the narrow one's.
- The delta loss of the residual stream is above the sublayers', and its FVU is about the same (Gemma Scope Figures 2
  and 13).
- Frequencies decrease with width (Gemma Scope Figure 5, Llama Scope Figure 4): medians of log10 frequency over latents
  that fired.
- Delta loss and FVU decrease as L0 increases.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet
import tyro
from rich.table import Table

from benchmarks.support.command_line import run_command
from benchmarks.support.tables import markdown_table, wide_console
from panscope.runs.run import Run
from panscope.storage.sealed import read_sealed
from panscope.types import Site

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """Whether the papers' findings hold on one run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a sweep: several sparsities and widths at every site."""
    label: str | None = None
    """The label of the evaluation to use; left out, the one on held-out text."""

    @property
    def suffix(self) -> str:
        """The end of the names of the evaluation's files."""
        return "" if self.label is None else f"-{self.label}"


def main(options: Options) -> None:
    """Print a table for each finding."""
    folder = Run.open(options.run)
    rows = [row | {"site": Site.parse(row["predicts"])} for row in read_rows(folder, options.suffix)]
    console = wide_console()
    for found in (wider(rows), residual(rows), shifted(folder, rows, options.suffix), falling(rows)):
        console.print(found)


def read_rows(folder: Run, suffix: str) -> list[dict[str, Any]]:
    """The rows of results.parquet, one for each coder."""
    return pyarrow.parquet.read_table(folder.path / f"results{suffix}.parquet").to_pylist()


def wider(rows: list[dict[str, Any]]) -> Table:
    """The wide coder against the narrow one at equal L0."""
    columns = ("site", "pairs", "delta loss: median ratio", "below 1 in", "FVU: median ratio", "below 1 in")
    table = markdown_table(columns, title="wide over narrow coders, at equal L0")
    for kind, of_kind in by(rows, lambda row: row["site"].kind).items():
        ratios: dict[str, list[float]] = {"delta_loss": [], "fvu": []}
        for of_site in by(of_kind, lambda row: row["site"]).values():
            widths = by(of_site, lambda row: row["width"])
            narrow, wide = widths[min(widths)], widths[max(widths)]
            for row in narrow:
                for name, found in ratios.items():
                    value = at(wide, row["l0"], name)
                    if value is not None:
                        found.append(value / row[name])
        cells = [cell for found in ratios.values() for cell in (f"{statistics.median(found):.2f}", below(found))]
        table.add_row(kind, str(len(ratios["fvu"])), *cells)
    return table


def at(curve: list[dict[str, Any]], l0: float, name: str) -> float | None:
    """The number `name` of one curve at `l0`, up to a tenth beyond the ends of the curve; None further out."""
    points = sorted((row["l0"], row[name]) for row in curve)
    if not points[0][0] / 1.1 <= l0 <= points[-1][0] * 1.1:
        return None
    x, y = zip(*((math.log(a), math.log(b)) for a, b in points), strict=True)
    return math.exp(float(np.interp(math.log(l0), x, y)))


def residual(rows: list[dict[str, Any]]) -> Table:
    """The residual stream against the sublayers of the same layer, at the same width and sparsity."""
    columns = ("sublayer", "pairs", "delta loss: median ratio", "above 1 in", "FVU: median ratio")
    table = markdown_table(columns, title="residual stream over sublayers")
    own = {key(row): row for row in rows if row["site"].kind == "resid_post"}
    for kind, of_kind in by(rows, lambda row: row["site"].kind).items():
        if kind != "resid_post":
            pairs = [(own[key(row)], row) for row in of_kind]
            ratios = {name: [a[name] / b[name] for a, b in pairs] for name in ("delta_loss", "fvu")}
            above = sum(ratio > 1 for ratio in ratios["delta_loss"])
            medians = [f"{statistics.median(found):.2f}" for found in ratios.values()]
            table.add_row(kind, str(len(pairs)), medians[0], f"{above} of {len(pairs)}", medians[1])
    return table


def key(row: Row) -> tuple[int, int, float]:
    """Layer, width and the requested sparsity, which is read from the name: JumpReLU has no such field."""
    return row["site"].layer, row["width"], float(row["coder"].rpartition("-k")[2])


def shifted(folder: Run, rows: list[dict[str, Any]], suffix: str) -> Table:
    """Medians of log10 frequency, and the shares of dead and dense latents."""
    columns = ("site", "width", "median log10 frequency", "never fired", "above 0.1")
    table = markdown_table(columns, title="frequencies by width")
    for kind, of_kind in by(rows, lambda row: row["site"].kind).items():
        for width, of_width in sorted(by(of_kind, lambda row: row["width"]).items()):
            fields = [read_sealed(folder.coder_folder(row["coder"]) / f"eval{suffix}.json") for row in of_width]
            median = statistics.median(log10_median(one["frequency"]) for one in fields)
            shares = [statistics.mean(one[name] for one in fields) for name in ("dead_fraction", "dense_fraction")]
            table.add_row(kind, str(width), f"{median:.2f}", *(f"{share:.1%}" for share in shares))
    return table


def log10_median(histogram: Mapping[str, Any]) -> float:
    """The middle of the histogram's bin that holds the median of the latents that fired."""
    edges, counts = histogram["log10_edges"], np.cumsum(histogram["latents"])
    middle = int(np.searchsorted(counts, counts[-1] / 2))
    return (edges[middle] + edges[middle + 1]) / 2


def falling(rows: list[dict[str, Any]]) -> Table:
    """How often delta loss and FVU decrease from one coder to the next with a larger L0, at the same site and width."""
    table = markdown_table(("number", "steps along curves", "decreasing"), title="with increasing L0")
    for name in ("delta_loss", "fvu"):
        steps = []
        for curve in by(rows, lambda row: (row["site"], row["width"])).values():
            values = [row[name] for row in sorted(curve, key=lambda row: row["l0"])]
            steps += [after < before for before, after in itertools.pairwise(values)]
        table.add_row(name, str(len(steps)), str(sum(steps)))
    return table


def by(rows: Iterable[dict[str, Any]], what: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    """Rows grouped by the value of `what`."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(what(row), []).append(row)
    return groups


def below(ratios: list[float]) -> str:
    """How many ratios are below 1, of how many."""
    return f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}"


if __name__ == "__main__":
    run_command(main, Options)
