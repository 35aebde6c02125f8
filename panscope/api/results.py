"""What an evaluation found, with documented names and units: what `train`, `resume` and `evaluate` give."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow

from panscope.evals.table import results_table
from panscope.runs.run import Run


@dataclass(frozen=True)
class EvaluatedCoder:
    """What was measured of one coder; docs/reference.md defines every number and names its source."""

    name: str
    """The coder's."""
    tokens: int
    """Rows that were measured."""
    l0: float
    """Active latents a row, on average."""
    fvu: float
    """Fraction of variance unexplained: 0 is perfect, 1 no better than the mean."""
    delta_loss: float
    """Next-token loss with the reconstruction in place minus without, in nats a token."""
    loss_recovered: float
    """Share of the loss of zero ablation that the reconstruction recovers: 1 is all."""
    dead_fraction: float
    """Share of latents that fired on no row."""
    dense_fraction: float
    """Share of latents that fired on more than a tenth of the rows."""
    intervals: Mapping[str, tuple[float, float]] = field(repr=False)
    """95 % intervals by the names of the numbers."""
    fields: Mapping[str, Any] = field(repr=False)
    """All of its eval.json."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "EvaluatedCoder":
        """That of an eval.json; numbers that are undefined there are NaN."""
        names = ("l0", "fvu", "delta_loss", "loss_recovered", "dead_fraction", "dense_fraction")
        numbers = {name: float("nan") if fields[name] is None else float(fields[name]) for name in names}
        intervals = {name: (low, high) for name, (low, high) in fields["intervals"].items()}
        return cls(name=fields["coder"], tokens=fields["tokens"], intervals=intervals, fields=fields, **numbers)


@dataclass(frozen=True)
class EvaluationResults(Mapping[str, EvaluatedCoder]):
    """One evaluation of a run: every coder's numbers, by the coder's name."""

    run: Path
    """The run folder, where all of it is stored."""
    label: str
    """What the files are named after; `held_out` for the run's held-out text."""
    coders: Mapping[str, EvaluatedCoder] = field(repr=False)
    """Each coder's results, by name."""

    @classmethod
    def of(cls, run: Run, label: str, results: Mapping[str, Mapping[str, Any]]) -> "EvaluationResults":
        """Those of what `results` has of each coder."""
        return cls(run.path, label, {name: EvaluatedCoder.of(fields) for name, fields in results.items()})

    def __getitem__(self, name: str) -> EvaluatedCoder:
        return self.coders[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.coders)

    def __len__(self) -> int:
        return len(self.coders)

    def table(self) -> pyarrow.Table:
        """A row a coder with all numbers, as in results.parquet; `.to_pandas()` makes it a data frame."""
        return Run.open(self.run).results(self.label)

    def __rich__(self) -> Any:
        """The table that the command line prints."""
        return results_table({name: coder.fields for name, coder in self.coders.items()})
