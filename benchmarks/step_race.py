"""Timing contestants in turn, so that whatever else the machine does hits all of them alike.

In each round everyone takes one turn: steps for about a second, one at least. A turn during which others kept more than
`LIMIT` of the machine busy is not clean; who is short of clean steps gets further rounds. A median is over clean steps,
or where there are too few of them over all, and then says so.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from benchmarks.other_load import OtherLoad

LIMIT = 0.05
WARM_UP = 3
"""Steps before the first that counts: compiling, first use of memory."""
_TURN_SECONDS = 1.0
_MOST_STEPS = 8
"""Of a turn."""
_PATIENCE = 3
"""How many times the rounds asked for there may be, for the sake of clean steps."""

Step = Callable[[Tensor], object]


@dataclass(frozen=True)
class Turn:
    """Steps one after another."""

    seconds: tuple[float, ...]
    others: float | None
    """Share of the machine that others used; None where that cannot be known."""

    def is_clean(self) -> bool:
        """Whether its times say something about the contestant."""
        return self.others is None or self.others <= LIMIT


@dataclass(frozen=True)
class Timing:
    """All turns of one contestant."""

    turns: tuple[Turn, ...]
    wanted: int
    """Clean steps that a median needs."""

    def clean(self) -> list[float]:
        """Seconds of the steps of clean turns."""
        return _steps(turn for turn in self.turns if turn.is_clean())

    def counted(self) -> list[float]:
        """Seconds of the steps that count."""
        return self.clean() if self.enough() else _steps(self.turns)

    def enough(self) -> bool:
        """Whether there are clean steps enough."""
        return len(self.clean()) >= self.wanted

    def median_ms(self) -> float:
        """Of a step."""
        return 1000 * statistics.median(self.counted())


def race(
    steps: Mapping[str, Step], batches: list[Tensor], rounds: int, say: Callable[[str], object]
) -> dict[str, Timing]:
    """Time steps on rows [B, D] taken in turn; at least `rounds` turns each. `say` hears how far it is."""
    rows = itertools.cycle(batches)
    for name, step in steps.items():
        say(f"warming up {name}")
        for _ in range(WARM_UP):
            step(next(rows))
    turns: dict[str, list[Turn]] = {name: [] for name in steps}
    for number in range(_PATIENCE * rounds):
        due = [name for name in steps if number < rounds or not Timing(tuple(turns[name]), rounds).enough()]
        say(f"round {number + 1}: {len(due)} to step")
        for name in due:
            turns[name].append(_turn(steps[name], rows))
    return {name: Timing(tuple(taken), rounds) for name, taken in turns.items()}


def _turn(step: Step, rows: Iterator[Tensor]) -> Turn:
    gc.collect()
    load, seconds = OtherLoad(), []
    while not seconds or (sum(seconds) < _TURN_SECONDS and len(seconds) < _MOST_STEPS):
        x = next(rows)
        start = time.perf_counter()
        step(x)
        seconds.append(time.perf_counter() - start)
    return Turn(tuple(seconds), load.share())


def _steps(turns: Iterator[Turn] | tuple[Turn, ...]) -> list[float]:
    return [seconds for turn in turns for seconds in turn.seconds]
