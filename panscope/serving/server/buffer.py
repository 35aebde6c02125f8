"""Which windows are in memory, which is read next, and which makes room for it.

Every trainer has a set of windows it has had in its present epoch. The window that is read next is one that somebody
has not had, so nothing is read that nobody wants, and of those the one that most have not had, in the order of the
rows: one read serves all that keep up. The oldest window that everybody has had makes room. Where all are still wanted
and a trainer has nothing left to take, those that lag are waited for: `grace` seconds since a window was first taken,
and no longer than that for a trainer that leaves everything lying. What they did not get comes round again.

Nothing here reads, sends or waits, and the clock is given, so every choice can be tested.

Shape letters: N windows of the slice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

UNTOUCHED = 5.0
"""Seconds at least for which a window that nobody has begun to take yet stays."""


@dataclass
class Trainer:
    """What is known of one trainer."""

    name: str
    epoch: int
    had: NDArray[np.bool_]
    """[N]."""
    heard: float
    """When it last said anything."""
    taking: set[int] = field(default_factory=set)
    """Windows on their way to it."""
    lagging_since: float | None = None
    """Since when it leaves something lying that it could take."""
    starved_since: float | None = None
    """Since when it has asked and nothing was there."""

    def wants(self) -> NDArray[np.bool_]:
        """[N] neither had nor on their way."""
        wanted = ~self.had
        wanted[list(self.taking)] = False
        return wanted


@dataclass
class Resident:
    """A window in memory."""

    loaded: float
    touched: float | None = None
    """When somebody began to take it."""


@dataclass(frozen=True)
class WindowChoice:
    """Read `window`, after dropping `drop` if it is not None."""

    window: int
    drop: int | None


class Buffer:
    """Room for `places` of `windows` windows; every method is called by one thread at a time."""

    def __init__(self, windows: int, places: int, grace: float, forget: float, clock: Callable[[], float]) -> None:
        assert places > 0
        self.windows, self._places, self._grace, self._forget, self._clock = windows, places, grace, forget, clock
        self.trainers: dict[str, Trainer] = {}
        self.resident: dict[int, Resident] = {}
        """The oldest first."""
        self._cursor = 0

    def meet(self, name: str) -> None:
        """A trainer, which wants nothing until it says its position."""
        self.trainers[name] = Trainer(name, -1, np.ones(self.windows, dtype=np.bool_), self._clock())
        self._look_round()

    def heard(self, name: str, epoch: int, had: NDArray[np.bool_]) -> None:
        """A trainer's position, as itself says it."""
        trainer = self.trainers[name]
        trainer.heard = self._clock()
        if trainer.epoch != epoch or (had & ~trainer.had).any():
            trainer.lagging_since = None
        trainer.epoch, trainer.had = epoch, had
        self._look_round()

    def asks(self, name: str) -> list[int]:
        """The windows that a trainer can take now, the oldest first; if there are none, that is remembered."""
        trainer = self.trainers[name]
        wanted = trainer.wants()
        offered = [window for window in self.resident if wanted[window]]
        if not offered and trainer.starved_since is None:
            trainer.starved_since = self._clock()
        return offered

    def begins(self, name: str, window: int) -> None:
        """A window goes on its way to a trainer."""
        now, trainer = self._clock(), self.trainers[name]
        trainer.heard, trainer.lagging_since = now, None
        trainer.taking.add(window)
        resident = self.resident.get(window)
        if resident is not None and resident.touched is None:
            resident.touched = now
        self._look_round()

    def goes_on(self, name: str) -> None:
        """A trainer takes more of a window."""
        if name in self.trainers:
            self.trainers[name].heard = self._clock()

    def ends(self, name: str, epoch: int, window: int, *, whole: bool) -> None:
        """It has been sent, or that broke off."""
        trainer = self.trainers.get(name)
        if trainer is None:
            return
        trainer.taking.discard(window)
        if whole:
            trainer.heard = self._clock()
            if trainer.epoch == epoch:
                trainer.had[window] = True
        self._look_round()

    def loaded(self, window: int) -> None:
        """A chosen window is in memory."""
        self.resident[window] = Resident(self._clock())
        self._cursor = (window + 1) % self.windows
        self._look_round()

    def drop(self, window: int) -> None:
        """It is not any more."""
        del self.resident[window]
        self._look_round()

    def forget_silent(self) -> list[str]:
        """Forget the trainers that have said nothing for too long; their names."""
        now = self._clock()
        gone = [t.name for t in self.trainers.values() if now >= t.heard + self._forget]
        for name in gone:
            del self.trainers[name]
        return gone

    def choose(self) -> WindowChoice | None:
        """What to read now; None if nothing is wanted or nothing may make room."""
        window = self._next()
        if window is None:
            return None
        if len(self.resident) < self._places:
            return WindowChoice(window, None)
        drop = self._droppable()
        return None if drop is None else WindowChoice(window, drop)

    def seconds(self) -> float | None:
        """After which time alone may change what `choose` or `forget_silent` do; None for never."""
        now = self._clock()
        times = [trainer.heard + self._forget for trainer in self.trainers.values()]
        if self._starved():
            times += [self._kept_until(window) for window in self.resident]
        return max(0.0, min(times) - now) if times else None

    def _next(self) -> int | None:
        """Of what the trainer that is hungry longest wants, or else anybody, the window that most want."""
        missing = np.ones(self.windows, dtype=np.bool_)
        missing[list(self.resident)] = False
        wants = {trainer.name: trainer.wants() & missing for trainer in self.trainers.values()}
        if not wants:
            return None
        counts = np.sum(list(wants.values()), axis=0)
        starved_since = self._starved()
        candidates = np.flatnonzero(wants[starved_since[0].name] if starved_since else counts)
        if not len(candidates):
            return None
        most = candidates[counts[candidates] == counts[candidates].max()]
        return int(most[np.argmin((most - self._cursor) % self.windows)])

    def _starved(self) -> list[Trainer]:
        """Those that asked in vain and for whom there is something to read, the longest waiting first."""
        found = [t for t in self.trainers.values() if t.starved_since is not None and t.wants().any()]
        return sorted(found, key=lambda trainer: _or_never(trainer.starved_since))

    def _droppable(self) -> int | None:
        for window in self.resident:
            if not self._lacking(window):
                return window
        now = self._clock()
        if self._starved():
            return next((window for window in self.resident if now >= self._kept_until(window)), None)
        return None

    def _lacking(self, window: int) -> list[Trainer]:
        return [trainer for trainer in self.trainers.values() if not trainer.had[window]]

    def _kept_until(self, window: int) -> float:
        """When those that lack a window are not waited for any more, if others are hungry."""
        resident = self.resident[window]
        if resident.touched is None:
            return resident.loaded + max(self._grace, UNTOUCHED)
        since = [min(resident.touched, _or_never(trainer.lagging_since)) for trainer in self._lacking(window)]
        return max(since, default=resident.touched) + self._grace

    def _look_round(self) -> None:
        """After any change: who finds something here, and who leaves it lying."""
        now = self._clock()
        for trainer in self.trainers.values():
            if trainer.wants()[list(self.resident)].any():
                trainer.starved_since = None
                trainer.lagging_since = now if trainer.lagging_since is None else trainer.lagging_since
            else:
                trainer.lagging_since = None


def _or_never(moment: float | None) -> float:
    return float("inf") if moment is None else moment
