"""How far a task is, in words: counts, rate and the time that is left."""

import time

from panscope.events import Progress


class Clock:
    """Times the present task, from its first event."""

    def __init__(self) -> None:
        self._task = ""
        self._begun, self._begun_at = 0.0, 0

    def is_new(self, event: Progress) -> bool:
        """Whether the event is of another task than the one before; then its time begins."""
        if event.task == self._task:
            return False
        self._task, self._begun, self._begun_at = event.task, time.monotonic(), event.done
        return True

    def stop(self) -> None:
        """The task is over."""
        self._task = ""

    @property
    def spent(self) -> float:
        """Seconds since the task's first event."""
        return time.monotonic() - self._begun

    def left(self, event: Progress) -> float | None:
        """Seconds that are left at the speed so far; None where nothing tells."""
        if event.total is None or event.done <= self._begun_at:
            return None
        return self.spent / (event.done - self._begun_at) * max(0, event.total - event.done)


def counts(event: Progress) -> str:
    """120 of 400 steps; what is measured in whole batches ends a little above its total, which is not shown."""
    if event.total is None:
        return f"{event.done:,} {event.unit}"
    return f"{min(event.done, event.total):,} of {event.total:,} {event.unit}"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24:,} d {hours % 24} h"


def in_words(event: Progress, clock: Clock) -> str:
    """training: 120 of 400 steps, 23,000 rows/s, 12 s left."""
    left = clock.left(event)
    words = [counts(event), event.rate, "" if not left else f"{duration(left)} left"]
    return f"{event.task}: {', '.join(word for word in words if word)}"
