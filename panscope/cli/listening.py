"""The listeners of a verb: the terminal and, on request, a log file and experiment trackers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from panscope.events import Listener
from panscope.listeners.log import log_file
from panscope.listeners.terminal import TerminalListener
from panscope.listeners.trackers import tracker


@contextmanager
def listening(console: Console, *, track: Sequence[str] = (), log: Path | None = None) -> Iterator[dict[str, Any]]:
    """Keyword arguments of the API's verbs for these listeners; raises UserError for a tracker not installed."""
    others: list[Listener] = [tracker(name) for name in dict.fromkeys(track)]
    with ExitStack() as stack:
        if log is not None:
            others.append(stack.enter_context(log_file(log)))
        terminal = stack.enter_context(TerminalListener(console))
        yield {"quiet": True, "listeners": [terminal, *others]}


def say(console: Console, text: str) -> None:
    """One line as it is."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
