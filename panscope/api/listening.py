"""The listeners of a run that is started from Python: terminal or notebook, the standard logging, and others."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from panscope.events import Listener, Reporter
from panscope.listeners.log import LogListener
from panscope.listeners.notebook import NotebookListener, in_notebook
from panscope.listeners.terminal import TerminalListener


@contextmanager
def reporting(quiet: bool, listeners: Sequence[Listener]) -> Iterator[Reporter]:
    """A reporter to `listeners`, to the logger `panscope` and, unless `quiet`, to the terminal or the notebook."""
    if quiet:
        yield Reporter(LogListener(), *listeners)
    elif in_notebook():
        yield Reporter(NotebookListener(), LogListener(), *listeners)
    else:
        with TerminalListener() as terminal:
            yield Reporter(terminal, LogListener(), *listeners)
