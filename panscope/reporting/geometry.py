"""What `panscope geometry` found out, read for the report; every table is checked against its checksum."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from panscope.reporting.figure import Missing, Row
from panscope.reporting.runs import ReportedRun, Results
from panscope.runs.finished_coder import read_table


@dataclass(frozen=True)
class Finding:
    """One analysis of the summary."""

    run: ReportedRun
    entry: dict[str, Any]

    @property
    def place(self) -> str:
        """Wiring and sites of its coders; a site that is read and predicted is named once."""
        reads, _, predicts = str(self.entry.get("place", "")).partition(" -> ")
        return reads if reads.endswith(f" {predicts}") or not predicts else f"{reads} -> {predicts}"

    def table(self) -> list[Row]:
        """The rows of its table."""
        (name,) = self.entry["files"]
        again = f"make it again by `panscope geometry {self.run.folder}`"
        return read_table(self.run.run.geometry_folder / name, self.entry["files"][name], again)


def findings(results: Results, kind: str) -> Iterator[Finding]:
    """The analyses of one kind, run by run."""
    for run in results.runs:
        for entry in (run.geometry or {}).get("analyses", []):
            if entry["kind"] == kind:
                yield Finding(run, entry)


def missing(results: Results, what: str) -> Missing:
    """A figure that is missing since `what`, a clause, and the command that computes it."""
    return Missing(what, f"run `panscope geometry {results.folder}`")
