"""`panscope eval`: measure every coder of a run again, on its held-out text or on other text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from panscope.cli.display import TerminalReporter
from panscope.cli.flags import flag
from panscope.evals.table import results_table
from panscope.lms.load import load
from panscope.records import RunFolder, locked
from panscope.suite import stages


@dataclass(frozen=True)
class Eval:
    """Measure every coder of a run and print the table.

    For example
      panscope eval runs/demo                          on the held-out share of the run's text
      panscope eval runs/demo --text other.jsonl       on exactly these documents, into eval-text.json
    """

    run_folder: Annotated[Path, tyro.conf.Positional, flag("RUN")]
    """The folder of a run."""
    text: Annotated[tuple[str, ...] | None, flag("FILE ...")] = None
    """Text to measure on, in place of the run's held-out share."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        folder = RunFolder.open(self.run_folder)
        suite = stages.read_suite(folder.suite_file)
        model = suite.model if self.device is None else suite.model.replace(device=self.device)
        data = None if self.text is None else suite.data.replace(text=self.text, held_out=0.0)
        reporter = TerminalReporter(console)
        with locked(folder.path):
            results = stages.evaluate_run(folder, suite, load(model), reporter, data)
        console.print(results_table(results))
        suffix = "" if data is None else "-text"
        reporter.say(f"Results are in {folder.path}: results{suffix}.parquet and coders/*/eval{suffix}.json")
        return 0
