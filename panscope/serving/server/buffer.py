"""Replacement policy of the server's window buffer: which window to read next, and which one to drop for it.

For each trainer the buffer knows which windows it has received in its current epoch. The next window to read is one
that some trainer has not received; among these, the one that most trainers lack, in row order, so that one read serves
all trainers that keep pace. The oldest window that every trainer has received is dropped. If every window is still
wanted by some trainer and another trainer has nothing left to receive, the lagging trainers are given `grace` seconds
from the moment a window was first sent, and no more than that in total for a trainer that takes no windows at all.
Windows that they miss are read again later.

Nothing here reads, sends or waits, and the clock is a parameter, so that every decision can be tested.

Shape letters: N windows of the slice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MIN_UNSENT_SECONDS = 5.0
"""Minimum time in memory of a window that has not been sent to any trainer."""


@dataclass
class Trainer:
    """The state of one trainer."""

    name: str
    epoch: int
    received: NDArray[np.bool_]
    """[N] windows received in this epoch."""
    last_seen: float
    """Time of its last activity."""
    in_transit: set[int] = field(default_factory=set)
    """Windows being sent to it."""
    lagging_since: float | None = None
    """Since when windows that it lacks have been available and it has not started to receive one; None if not so."""
    starved_since: float | None = None
    """Since when its requests have found no window that it lacks; None if not so."""

    def wanted(self) -> NDArray[np.bool_]:
        """[N] windows that are neither received nor being sent."""
        wanted = ~self.received
        wanted[list(self.in_transit)] = False
        return wanted


@dataclass
class Resident:
    """A window in memory."""

    loaded: float
    first_sent: float | None = None
    """When it was first sent to a trainer; None if it has not been."""


@dataclass(frozen=True)
class WindowChoice:
    """Read `window`, after dropping the window `drop` if it is not None."""

    window: int
    drop: int | None


class Buffer:
    """Bookkeeping for at most `capacity` of `windows` windows in memory; not thread-safe."""

    def __init__(self, windows: int, capacity: int, grace: float, forget: float, clock: Callable[[], float]) -> None:
        assert capacity > 0
        self.windows, self._capacity, self._grace, self._forget, self._clock = windows, capacity, grace, forget, clock
        self.trainers: dict[str, Trainer] = {}
        self.resident: dict[int, Resident] = {}
        """Windows in memory, the oldest first."""
        self._cursor = 0

    def add_trainer(self, name: str) -> None:
        """Register a trainer, which wants nothing until its first `update_position`."""
        self.trainers[name] = Trainer(name, -1, np.ones(self.windows, dtype=np.bool_), self._clock())
        self._update_waiting()

    def update_position(self, name: str, epoch: int, received: NDArray[np.bool_]) -> None:
        """Set a trainer's position to the one that it reported."""
        trainer = self.trainers[name]
        trainer.last_seen = self._clock()
        if trainer.epoch != epoch or (received & ~trainer.received).any():
            trainer.lagging_since = None
        trainer.epoch, trainer.received = epoch, received
        self._update_waiting()

    def offer(self, name: str) -> list[int]:
        """Windows that can be sent to a trainer now, the oldest first; if there are none, it counts as starved."""
        trainer = self.trainers[name]
        wanted = trainer.wanted()
        offered = [window for window in self.resident if wanted[window]]
        if not offered and trainer.starved_since is None:
            trainer.starved_since = self._clock()
        return offered

    def start_sending(self, name: str, window: int) -> None:
        """Record that a window is being sent to a trainer."""
        now, trainer = self._clock(), self.trainers[name]
        trainer.last_seen, trainer.lagging_since = now, None
        trainer.in_transit.add(window)
        resident = self.resident.get(window)
        if resident is not None and resident.first_sent is None:
            resident.first_sent = now
        self._update_waiting()

    def record_activity(self, name: str) -> None:
        """Record that a trainer has received another message of a window."""
        if name in self.trainers:
            self.trainers[name].last_seen = self._clock()

    def finish_sending(self, name: str, epoch: int, window: int, *, whole: bool) -> None:
        """Record that sending a window has ended, after the `whole` window or early."""
        trainer = self.trainers.get(name)
        if trainer is None:
            return
        trainer.in_transit.discard(window)
        if whole:
            trainer.last_seen = self._clock()
            if trainer.epoch == epoch:
                trainer.received[window] = True
        self._update_waiting()

    def add_window(self, window: int) -> None:
        """Record that a window has been read into memory."""
        self.resident[window] = Resident(self._clock())
        self._cursor = (window + 1) % self.windows
        self._update_waiting()

    def drop_window(self, window: int) -> None:
        """Record that a window is no longer in memory."""
        del self.resident[window]
        self._update_waiting()

    def forget_inactive(self) -> list[str]:
        """Forget the trainers that have been inactive for too long; returns their names."""
        now = self._clock()
        inactive = [t.name for t in self.trainers.values() if now >= t.last_seen + self._forget]
        for name in inactive:
            del self.trainers[name]
        return inactive

    def choose(self) -> WindowChoice | None:
        """The next window to read; None if no window is wanted or none may be dropped for it."""
        window = self._next_window()
        if window is None:
            return None
        if len(self.resident) < self._capacity:
            return WindowChoice(window, None)
        drop = self._droppable()
        return None if drop is None else WindowChoice(window, drop)

    def seconds_until_change(self) -> float | None:
        """Seconds after which `choose` or `forget_inactive` may give another result by time alone; None for never."""
        now = self._clock()
        times = [trainer.last_seen + self._forget for trainer in self.trainers.values()]
        if self._starved():
            times += [self._kept_until(window) for window in self.resident]
        return max(0.0, min(times) - now) if times else None

    def _next_window(self) -> int | None:
        """The window that most trainers want, of those that the longest starved trainer wants if one is starved."""
        missing = np.ones(self.windows, dtype=np.bool_)
        missing[list(self.resident)] = False
        wanted = {trainer.name: trainer.wanted() & missing for trainer in self.trainers.values()}
        if not wanted:
            return None
        counts = np.sum(list(wanted.values()), axis=0)
        starved = self._starved()
        candidates = np.flatnonzero(wanted[starved[0].name] if starved else counts)
        if not len(candidates):
            return None
        most = candidates[counts[candidates] == counts[candidates].max()]
        return int(most[np.argmin((most - self._cursor) % self.windows)])

    def _starved(self) -> list[Trainer]:
        """Starved trainers that still want a window, the longest starved first."""
        starved = [t for t in self.trainers.values() if t.starved_since is not None and t.wanted().any()]
        return sorted(starved, key=lambda trainer: _or_infinity(trainer.starved_since))

    def _droppable(self) -> int | None:
        for window in self.resident:
            if not self._trainers_lacking(window):
                return window
        now = self._clock()
        if self._starved():
            return next((window for window in self.resident if now >= self._kept_until(window)), None)
        return None

    def _trainers_lacking(self, window: int) -> list[Trainer]:
        return [trainer for trainer in self.trainers.values() if not trainer.received[window]]

    def _kept_until(self, window: int) -> float:
        """Until when a window is kept for the trainers that lack it while other trainers are starved."""
        resident = self.resident[window]
        if resident.first_sent is None:
            return resident.loaded + max(self._grace, MIN_UNSENT_SECONDS)
        since = [min(resident.first_sent, _or_infinity(t.lagging_since)) for t in self._trainers_lacking(window)]
        return max(since, default=resident.first_sent) + self._grace

    def _update_waiting(self) -> None:
        """Update which trainers are starved or lagging, after any change."""
        now = self._clock()
        for trainer in self.trainers.values():
            if trainer.wanted()[list(self.resident)].any():
                trainer.starved_since = None
                trainer.lagging_since = now if trainer.lagging_since is None else trainer.lagging_since
            else:
                trainer.lagging_since = None


def _or_infinity(moment: float | None) -> float:
    return float("inf") if moment is None else moment
