"""A run in a terminal: a progress bar with rate and time left, and a live table of the coders.

Where the output is not a terminal (a log file, CI), plain lines are printed: at most ten a task, and one a minute.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from panscope import events
from panscope.listeners.progress import Clock, counts, duration, in_words

_ROWS_SHOWN = 40
LINE_SECONDS, TENTH_SECONDS = 60.0, 5.0
"""Without a terminal a line is printed after so long, or so long after the last where another tenth is done."""


class TerminalListener:
    """Draws what a run tells on a rich console; to be closed, or used in a `with`."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._is_live = self._console.is_terminal
        self._clock = Clock()
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            expand=True,
        )
        self._table: Table | None = None
        self._fvu = ""
        self._said, self._said_at, self._unsaid = 0.0, 0, ""

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.Message(text, is_warning):
                self._print(f"Warning: {text}" if is_warning else text)
            case events.Progress():
                self._draw(event) if self._is_live else self._print_progress(event)
            case events.StepLogged(records):
                self._fvu = f", median FVU {statistics.median(record['fvu'] for record in records):.4f}"
                self._table = _table(records) if self._is_live else None
            case events.TaskEnded() | events.RunClosed():
                self.close()

    def __enter__(self) -> "TerminalListener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it is, with the last line of the present task."""
        if self._unsaid:
            self._print(self._unsaid)
        if self._live is not None:
            self._live.stop()
        for task in list(self._bar.task_ids):
            self._bar.remove_task(task)
        self._live, self._table, self._unsaid, self._fvu = None, None, "", ""
        self._clock.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _draw(self, event: events.Progress) -> None:
        if self._clock.is_new(event):
            for task in list(self._bar.task_ids):
                self._bar.remove_task(task)
            self._bar.add_task(event.task, total=event.total, words="")
        left = self._clock.left(event)
        words = [counts(event), event.rate, "" if left is None else f"{duration(left)} left"]
        (task,) = self._bar.task_ids
        done = event.done if event.total is None else min(event.done, event.total)
        self._bar.update(task, completed=done, words="  ".join(word for word in words if word))
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.update(self._bar if self._table is None else Group(self._table, self._bar))

    def _print_progress(self, event: events.Progress) -> None:
        """A line where it is time for one; the last one is kept for the end of a task that had any."""
        if self._clock.is_new(event):
            self._said, self._said_at, self._unsaid = time.monotonic(), event.done, ""
            return
        since = time.monotonic() - self._said
        has_tenth = event.total is not None and event.done - self._said_at >= event.total / 10
        line = in_words(event, self._clock) + self._fvu
        if since >= LINE_SECONDS or (has_tenth and since >= TENTH_SECONDS):
            self._print(line)
            self._said, self._said_at, self._unsaid = time.monotonic(), event.done, ""
        elif self._clock.spent >= TENTH_SECONDS:
            self._unsaid = line


def _table(records: Sequence[Mapping[str, Any]]) -> Table:
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
