"""Throughput over the last few seconds."""

from collections.abc import Callable

_SECONDS = 10


class RateMeter:
    """A counter with its rate over the last `_SECONDS` seconds; not thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._by_second: dict[int, int] = {}
        self.total = 0

    def add(self, amount: int) -> None:
        """Count `amount` at the current time."""
        second = int(self._clock())
        self.total += amount
        self._by_second[second] = self._by_second.get(second, 0) + amount
        if len(self._by_second) > _SECONDS + 1:
            del self._by_second[min(self._by_second)]

    def rate(self) -> float:
        """The amount per second."""
        now = self._clock()
        recent = sum(amount for second, amount in self._by_second.items() if second > now - _SECONDS)
        return recent / max(1.0, min(_SECONDS, now - self._started))
