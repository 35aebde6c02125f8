"""How a run looks in a terminal: a progress bar with rate and time left, and a live table of the coders.

Where the output is not a terminal (a log file, CI), one plain line is printed for every logged step instead,
and now and then one for other long work.
"""

import statistics
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from panscope.cli.units import counted
from panscope.plan.plan import Plan

_ROWS_SHOWN = 40
_SECONDS_BETWEEN_LINES = 15.0
"""Of what is under way, where the output is not a terminal."""


class TerminalReporter:
    """Draws what a run reports on a rich console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._live: Live | None = None
        self._begun = 0.0
        self._begun_at = 0
        self._told = 0.0
        self._unsaid: str | None = None
        self._steps = 0

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def planned(self, plan: Plan) -> None:
        """The size of the suite in four lines."""
        suite = plan.suite
        kinds = sorted({coder.coder.architecture for coder in plan.coders})
        sites = sorted({str(site.kind) for site in plan.sites()})
        self.say(f"{suite.name}: {counted(len(plan.coders), 'coder')} ({', '.join(kinds)}) at {', '.join(sites)}")
        self.say(f"model {suite.model.path}; text {', '.join(suite.data.text)}; context {suite.data.context}")
        self.say(f"{plan.steps * plan.batch:,} tokens = {plan.steps:,} steps of {plan.batch:,} rows")
        self.say(f"rows are gathered and shuffled {plan.buffer_rows:,} at a time ({suite.activations.shuffle})")

    def training(self, start: int, steps: int, batch: int) -> None:
        """Open the bar."""
        self._begun, self._begun_at, self._steps = time.monotonic(), start, steps
        self._open("training", steps, start)

    def stepped(self, step: int) -> None:
        """Move the bar."""
        for task in self._progress.task_ids:
            self._progress.update(task, completed=step)

    def logged(self, records: list[dict[str, Any]]) -> None:
        """Refresh the table, or print a line."""
        step, rate = records[0]["step"], f"{records[0]['rows_per_second']:,.0f} rows/s"
        for task in self._progress.task_ids:
            self._progress.update(task, rate=rate)
        if self._live is not None:
            self._live.update(Group(_live_table(records), self._progress))
        else:
            spent = time.monotonic() - self._begun
            left = spent / max(1, step - self._begun_at) * (self._steps - step)
            fvu = statistics.median(record["fvu"] for record in records)
            self.say(f"step {step:,}/{self._steps:,}  {rate}  {left:,.0f} s left  median FVU {fvu:.4f}")

    def evaluating(self, done: int, total: int | None) -> None:
        """Open or move the bar of the evaluation."""
        self._move("evaluating", done, total)

    def collecting(self, done: int, total: int) -> None:
        """Open or move the bar of the rows that are stored."""
        self._move("storing rows", done, total)

    def _move(self, what: str, done: int, total: int | None) -> None:
        if not self._progress.task_ids:
            self._open(what, total, done)
        for task in self._progress.task_ids:
            self._progress.update(task, completed=min(done, total) if total else done)
        line = f"{what}: {min(done, total):,} of {total:,}" if total else f"{what}: {done:,}"
        if self._live is None and time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told, self._unsaid = time.monotonic(), None
            self.say(line)
        else:
            self._unsaid = line

    def finished(self) -> None:
        """Close the bar."""
        if self._live is None and self._unsaid is not None:
            self.say(self._unsaid)
        self._unsaid = None
        if self._live is not None:
            self._live.stop()
            self._live = None
        for task in list(self._progress.task_ids):
            self._progress.remove_task(task)

    def _open(self, what: str, total: int | None, completed: int) -> None:
        self._progress.add_task(what, total=total, completed=completed, rate="")
        if self._console.is_terminal:
            self._live = Live(self._progress, console=self._console, refresh_per_second=4)
            self._live.start()
        else:
            self._told = time.monotonic()
            self.say(f"{what} ...")


def _live_table(records: list[dict[str, Any]]) -> Table:
    """The newest figures of every coder."""
    table = Table(box=None, pad_edge=False)
    table.add_column("coder", no_wrap=True)
    for name in ("loss", "FVU", "L0", "dead", "rate"):
        table.add_column(name, justify="right")
    for record in records[:_ROWS_SHOWN]:
        table.add_row(
            record["coder"],
            f"{record['loss']:.4g}",
            f"{record['fvu']:.4f}",
            f"{record['l0']:.1f}",
            f"{record['dead_fraction']:.1%}",
            f"{record['learning_rate']:.1e}",
        )
    if len(records) > _ROWS_SHOWN:
        table.add_row(f"... and {len(records) - _ROWS_SHOWN} more")
    return table
