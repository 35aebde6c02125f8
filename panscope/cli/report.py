"""`panscope report`: the figures of one run, or of several beside each other, as one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.flags import flag
from panscope.cli.units import counted
from panscope.config import expanded
from panscope.report.label import drawing
from panscope.report.runs import HELD_OUT, read_runs
from panscope.report.write import check_place, write_report
from panscope.types import UserError


@dataclass(frozen=True)
class Report:
    """Draw every figure of a run's results: a page that opens without network, and each figure as SVG and CSV.

    For example
      panscope report runs/demo                              into runs/demo/report/index.html
      panscope report runs/a runs/b --out reports/a-and-b    two runs in the same figures
      panscope report runs/theirs runs/ours --eval text --out reports/both    measured on the same --text
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, flag("RUN [RUN ...]")]
    """The folders of runs."""
    out: Annotated[Path | None, flag("DIR")] = None
    """Where the report goes, if not into the run's own folder; needed for several runs."""
    eval: Annotated[str | None, flag("LABEL")] = None
    """Whose numbers are drawn; left out, those on held-out text, or of the only other evaluation that all runs have."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        out = self._place()
        results = drawing(read_runs(self.runs), self.eval)
        check_place(out)
        written = write_report(results, out)
        if results.label != HELD_OUT:
            _say(console, f"the numbers are those of the evaluation {results.label}")
        for title, reason in written.left_out.items():
            _say(console, f"left out: {title}: {reason}")
        _say(console, f"{counted(len(written.figures), 'figure')} in {written.page}; open it in a browser")
        return 0

    def _place(self) -> Path:
        if not self.runs:
            raise UserError("RUN is missing: give the folder of a run, or of several")
        if self.out is not None:
            return expanded(self.out)
        first, *others = self.runs
        if others:
            raise UserError(
                f"--out is missing: a report on {len(self.runs)} runs belongs to none of them, so say where"
            )
        return expanded(first) / "report"


def _say(console: Console, text: str) -> None:
    """One line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
