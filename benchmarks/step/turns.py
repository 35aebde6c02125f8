"""Timing several contestants in turns, so that other load on the machine affects them all alike.

In each round every contestant has one turn: steps for about a second, at least one. A turn during which other processes
used more than `LIMIT` of the machine is not clean, and a contestant with too few clean steps gets further rounds. The
median is over the clean steps; if there are still too few it is over all steps, and the result says so.
"""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from benchmarks.support.other_load import OtherLoad

LIMIT = 0.05
"""The largest share of the machine that other processes may use in a clean turn."""
WARM_UP = 3
"""Steps that are not timed: compilation, first use of memory."""
_TURN_SECONDS = 1.0
_MAX_TURN_STEPS = 8
_MAX_ROUNDS = 3
"""How many times the rounds asked for may be run to get enough clean steps."""

Step = Callable[[Tensor], object]


@dataclass(frozen=True)
class Turn:
    """The steps of one turn."""

    seconds: tuple[float, ...]
    """Of each step."""
    others: float | None
    """The share of the machine that other processes used; None where that cannot be measured."""

    def is_clean(self) -> bool:
        """Whether other processes used little enough of the machine for these times to count."""
        return self.others is None or self.others <= LIMIT


@dataclass(frozen=True)
class Timing:
    """All turns of one contestant."""

    turns: tuple[Turn, ...]
    wanted: int
    """Clean steps that the median needs."""

    def clean(self) -> list[float]:
        """Seconds of each step of the clean turns."""
        return _steps(turn for turn in self.turns if turn.is_clean())

    def counted(self) -> list[float]:
        """Seconds of each step that counts: the clean ones, or all if there are too few of those."""
        return self.clean() if self.enough() else _steps(self.turns)

    def enough(self) -> bool:
        """Whether there are enough clean steps."""
        return len(self.clean()) >= self.wanted

    def median_ms(self) -> float:
        """The median of the steps that count, in milliseconds."""
        return 1000 * statistics.median(self.counted())


def time_in_turns(
    steps: Mapping[str, Step], batches: list[Tensor], rounds: int, say: Callable[[str], object]
) -> dict[str, Timing]:
    """Time each step on rows [B, D] of successive batches, in at least `rounds` turns each; `say` gets the progress."""
    rows = itertools.cycle(batches)
    for name, step in steps.items():
        say(f"warming up {name}")
        for _ in range(WARM_UP):
            step(next(rows))
    turns: dict[str, list[Turn]] = {name: [] for name in steps}
    for number in range(_MAX_ROUNDS * rounds):
        due = [name for name in steps if number < rounds or not Timing(tuple(turns[name]), rounds).enough()]
        say(f"round {number + 1}: {len(due)} contestants")
        for name in due:
            turns[name].append(_turn(steps[name], rows))
    return {name: Timing(tuple(taken), rounds) for name, taken in turns.items()}


def _turn(step: Step, rows: Iterator[Tensor]) -> Turn:
    gc.collect()
    load, seconds = OtherLoad(), []
    while not seconds or (sum(seconds) < _TURN_SECONDS and len(seconds) < _MAX_TURN_STEPS):
        x = next(rows)
        start = time.perf_counter()
        step(x)
        seconds.append(time.perf_counter() - start)
    return Turn(tuple(seconds), load.share())


def _steps(turns: Iterator[Turn] | tuple[Turn, ...]) -> list[float]:
    return [seconds for turn in turns for seconds in turn.seconds]
