"""A run in Python's standard logging, under the logger `panscope`, so that a cluster's log files say what happened."""

import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from panscope import events
from panscope.listeners.progress import Clock, in_words

LOGGER = "panscope"
_SECONDS_BETWEEN = 60.0
"""Of progress, one line in so long."""


class LogListener:
    """Writes what a run tells to a logger: messages as INFO, what looks wrong as WARNING."""

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(LOGGER)
        if not self._logger.handlers:
            self._logger.addHandler(logging.NullHandler())  # else Python prints warnings to stderr
        self._clock, self._last = Clock(), 0.0

    def __call__(self, event: events.Event) -> None:
        """Log one event."""
        match event:
            case events.Message(text, is_warning):
                self._logger.log(logging.WARNING if is_warning else logging.INFO, text)
            case events.Progress():
                is_new = self._clock.is_new(event)
                if is_new or time.monotonic() - self._last >= _SECONDS_BETWEEN:
                    self._last = time.monotonic()
                    self._logger.info(in_words(event, self._clock))
            case events.StepLogged(records):
                medians = {name: statistics.median(one[name] for one in records) for name in ("loss", "fvu", "l0")}
                said = ", ".join(f"{name} {value:.4g}" for name, value in medians.items())
                self._logger.info("step %d: median %s", records[0]["step"], said)
            case events.TaskEnded():
                self._clock.stop()
            case events.RunOpened(folder, _, step):
                self._logger.info("%s: %s", folder, "evaluation" if step is None else f"training from step {step}")
            case events.Evaluated(label, results):
                self._logger.info("evaluation %s of %d coders is written", label, len(results))
            case events.RunClosed():
                self._logger.info("closed")


@contextmanager
def log_file(path: Path) -> Iterator[LogListener]:
    """A listener that appends lines with date and level to a file; raises OSError if it cannot be opened."""
    with closing(logging.FileHandler(path, encoding="utf-8")) as handler:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger = logging.Logger(f"{LOGGER}.file")
        logger.addHandler(handler)
        yield LogListener(logger)
