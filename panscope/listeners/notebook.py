"""A run in a notebook: one output that is drawn anew, with a progress bar and the newest figures of the coders.

IPython is used where it runs already, so it is no dependency of Panscope's.
"""

import html
import statistics
import sys
import time
from typing import Any

from panscope import events
from panscope.listeners.progress import Clock, in_words

_SECONDS_BETWEEN = 0.5
"""How often the output is drawn at most."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class NotebookListener:
    """Draws what a run tells below the cell that runs it."""

    def __init__(self) -> None:
        """Raises RuntimeError where this process is not the kernel of a notebook."""
        if not in_notebook():
            raise RuntimeError("NotebookListener works in the kernel of a notebook: take TerminalListener elsewhere")
        self._display: Any = sys.modules["IPython.display"]
        self._handle: Any = None
        self._clock = Clock()
        self._lines: list[str] = []
        self._bar, self._figures, self._drawn = "", "", 0.0

    def __call__(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.Message(text, is_warning):
                self._lines.append(f"<b>Warning:</b> {html.escape(text)}" if is_warning else html.escape(text))
                self._draw()
            case events.Progress():
                self._clock.is_new(event)
                if time.monotonic() - self._drawn > _SECONDS_BETWEEN:
                    self._bar = f"{_bar(event)} {html.escape(in_words(event, self._clock))}"
                    self._draw()
            case events.StepLogged(records):
                fvu = statistics.median(record["fvu"] for record in records)
                dead = statistics.median(record["dead_fraction"] for record in records)
                self._figures = f"median FVU {fvu:.4f}, median share of dead latents {dead:.1%}"
            case events.TaskEnded():
                self._clock.stop()
                self._bar = self._figures = ""
                self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        parts = "<br>".join(part for part in (*self._lines, self._bar, self._figures) if part)
        shown = self._display.HTML(f"<div>{parts}</div>")
        if self._handle is None:
            self._handle = self._display.display(shown, display_id=True)
        else:
            self._handle.update(shown)


def _bar(event: events.Progress) -> str:
    if event.total is None:
        return "<progress></progress>"
    return f'<progress value="{min(event.done, event.total)}" max="{event.total}"></progress>'
