"""Reporters for tests: one that remembers what it is told, and one that does something at a point of a task."""

from collections.abc import Callable
from typing import Any

from panscope.events import Event, Message, Progress, Reporter


class Heard(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(self._hear)
        self.events: list[Event] = []
        self.said: list[str] = []
        self.done: dict[str, tuple[int, int | None]] = {}
        """The last count and the total of each task."""

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Message):
            self.said.append(event.text)
        if isinstance(event, Progress):
            self.done[event.task] = (event.done, event.total)


class At(Heard):
    """Calls `deed` whenever a task has come to `done`, or beyond it with `beyond`."""

    def __init__(self, task: str, done: int, deed: Callable[[], Any], *, beyond: bool = False) -> None:
        super().__init__()
        self._task, self._done, self._deed, self._beyond = task, done, deed, beyond

    def tell(self, event: Event) -> None:
        super().tell(event)
        if not isinstance(event, Progress) or event.task != self._task:
            return
        if event.done == self._done or (self._beyond and event.done > self._done):
            self._deed()
