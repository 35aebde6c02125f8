"""The papers' findings on a sparsity x width sweep: whether they hold, with numbers, as Markdown.

Run from the repository's root: python -m benchmarks.findings runs/sweep

- Wider is better at equal L0 (Gemma Scope Figure 4, Llama Scope Figure 2): delta loss and FVU of the wide coder, read
  off at the narrow one's L0 (a straight line between logarithms), against the narrow one's.
- Delta loss of the residual stream is above the sublayers', FVU is about the same (Gemma Scope Figures 2 and 13).
- Frequencies shift left with width (Gemma Scope Figure 5, Llama Scope Figure 4): medians of log10 frequency over
  latents that fired.
- Delta loss and FVU fall with L0.
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
from rich import box
from rich.console import Console
from rich.table import Table

from panscope.runs.run import Run
from panscope.storage.sealed import read_sealed
from panscope.types import Site

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Options:
    """The findings of one run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a sweep: several sparsities and widths at every site."""
    label: str | None = None
    """The label of another evaluation than that of the held-out text."""

    @property
    def suffix(self) -> str:
        """What the evaluation's files end with."""
        return "" if self.label is None else f"-{self.label}"


def main(options: Options) -> None:
    """Print every finding's table."""
    folder = Run.open(options.run)
    rows = [row | {"site": Site.parse(row["predicts"])} for row in read_rows(folder, options.suffix)]
    console = Console(width=160)
    for found in (wider(rows), residual(rows), shifted(folder, rows, options.suffix), falling(rows)):
        console.print(found)


def read_rows(folder: Run, suffix: str) -> list[dict[str, Any]]:
    """results.parquet, a row a coder."""
    return pyarrow.parquet.read_table(folder.path / f"results{suffix}.parquet").to_pylist()


def wider(rows: list[dict[str, Any]]) -> Table:
    """The wide coder against the narrow one at equal L0."""
    table = _table("wider, at equal L0", "site", "pairs", "delta loss: median ratio", "below 1 in", "fvu", "below 1 in")
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
    """A number of the coders of one curve at an L0 between theirs, or within a tenth of the outermost; else None."""
    points = sorted((row["l0"], row[name]) for row in curve)
    if not points[0][0] / 1.1 <= l0 <= points[-1][0] * 1.1:
        return None
    x, y = zip(*((math.log(a), math.log(b)) for a, b in points), strict=True)
    return math.exp(float(np.interp(math.log(l0), x, y)))


def residual(rows: list[dict[str, Any]]) -> Table:
    """The residual stream against the sublayers, layer by layer at the same width and sparsity."""
    table = _table("residual against sublayers", "sublayer", "pairs", "delta loss: median ratio", "above 1 in", "fvu")
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
    """What pairs coders of different sites of a layer: asked sparsity stands in the name, as JumpReLU has none."""
    return row["site"].layer, row["width"], float(row["coder"].rpartition("-k")[2])


def shifted(folder: Run, rows: list[dict[str, Any]], suffix: str) -> Table:
    """Medians of log10 frequency, and shares of dead and dense latents."""
    names = ("site", "width", "median log10 frequency", "never fired", "above 0.1")
    table = _table("frequencies by width", *names)
    for kind, of_kind in by(rows, lambda row: row["site"].kind).items():
        for width, of_width in sorted(by(of_kind, lambda row: row["width"]).items()):
            fields = [read_sealed(folder.coder_folder(row["coder"]) / f"eval{suffix}.json") for row in of_width]
            median = statistics.median(log10_median(one["frequency"]) for one in fields)
            shares = [statistics.mean(one[name] for one in fields) for name in ("dead_fraction", "dense_fraction")]
            table.add_row(kind, str(width), f"{median:.2f}", *(f"{share:.1%}" for share in shares))
    return table


def log10_median(histogram: Mapping[str, Any]) -> float:
    """The middle of the bar that holds the median latent of those that fired."""
    edges, counts = histogram["log10_edges"], np.cumsum(histogram["latents"])
    bar = int(np.searchsorted(counts, counts[-1] / 2))
    return (edges[bar] + edges[bar + 1]) / 2


def falling(rows: list[dict[str, Any]]) -> Table:
    """Whether delta loss and FVU fall as L0 rises, along every curve of three sparsities."""
    table = _table("falling with L0", "number", "steps along curves", "falling")
    for name in ("delta_loss", "fvu"):
        steps = []
        for curve in by(rows, lambda row: (row["site"], row["width"])).values():
            values = [row[name] for row in sorted(curve, key=lambda row: row["l0"])]
            steps += [after < before for before, after in itertools.pairwise(values)]
        table.add_row(name, str(len(steps)), str(sum(steps)))
    return table


def by(rows: Iterable[dict[str, Any]], what: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    """Rows that have something in common together."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(what(row), []).append(row)
    return groups


def below(ratios: list[float]) -> str:
    """How many are below 1."""
    return f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.MARKDOWN)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


if __name__ == "__main__":
    main(tyro.cli(Options))
