"""Leaving politely: the first Ctrl-C or SIGTERM asks the run to save and stop, the second one stops it at once."""

import signal
from collections.abc import Callable
from types import FrameType


class StopRequest:
    """Set by SIGINT or SIGTERM while it is installed (a context manager; only in the main thread)."""

    def __init__(self, on_request: Callable[[], None]) -> None:
        """`on_request` is called when the first signal comes."""
        self.signal: int | None = None
        self._on_request = on_request
        self._previous: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        self._on_request()
