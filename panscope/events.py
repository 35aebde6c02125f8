"""What a run reports: one type of event, for any number of listeners.

A listener is any function of an event; `panscope.listeners` has those for a terminal, a notebook, the standard
`logging` and experiment trackers. train.jsonl and eval.json do not depend on the listeners.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that a run tells."""


@dataclass(frozen=True)
class Message(Event):
    """A sentence to show."""

    text: str
    """The sentence."""
    is_warning: bool = False
    """Whether it says that something looks wrong."""


@dataclass(frozen=True)
class Progress(Event):
    """How far a task is; there is one task at a time."""

    task: str
    """What is done, such as "training"."""
    done: int
    """How much of it is done, in `unit`."""
    total: int | None
    """What `done` will be at the end; None where that is not known."""
    unit: str
    """What is counted, such as "tokens"."""
    rate: str = ""
    """How fast, such as "12,300 rows/s"."""


@dataclass(frozen=True)
class TaskEnded(Event):
    """The present task is over, or was left."""


@dataclass(frozen=True)
class RunOpened(Event):
    """Work on a run folder begins: it is trained, resumed or evaluated."""

    folder: Path
    """The run folder."""
    config: Mapping[str, Any]
    """The tables of suite.toml."""
    step: int | None
    """The steps that are done already; None where it is evaluated only."""


@dataclass(frozen=True)
class StepLogged(Event):
    """What train.jsonl has of one step."""

    records: Sequence[Mapping[str, Any]]
    """A record a coder, with `coder`, `step` and its numbers."""


@dataclass(frozen=True)
class Evaluated(Event):
    """An evaluation of a run is written."""

    label: str
    """The label of the evaluation."""
    results: Mapping[str, Mapping[str, Any]]
    """The fields of eval.json of every coder."""


@dataclass(frozen=True)
class RunClosed(Event):
    """Work on a run folder is over, or was left."""


Listener = Callable[[Event], None]


class Reporter:
    """Tells events to listeners, in the order they were given; one without listeners is silent."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def tell(self, event: Event) -> None:
        """Tell an event."""
        for listener in self._listeners:
            listener(event)

    def say(self, text: str) -> None:
        """Tell a sentence."""
        self.tell(Message(text))

    def warn(self, text: str) -> None:
        """Tell of something that looks wrong."""
        self.tell(Message(text, is_warning=True))

    def progress(self, task: str, done: int, total: int | None, unit: str, rate: str = "") -> None:
        """Tell how far a task is."""
        self.tell(Progress(task, done, total, unit, rate))

    def ended(self) -> None:
        """Tell that the present task is over, or was left."""
        self.tell(TaskEnded())
