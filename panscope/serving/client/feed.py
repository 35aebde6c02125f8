"""One server's windows, fetched ahead by a thread into memory of their own, their rows already in the given order.

The thread and the trainer share what is below `changed`; a feed decides nothing about rows, it only knows which windows
it need not fetch. It never ends because a server is gone: it waits, longer each time, and tries again.

Shape letters: W rows of a window, N windows of the slice, D width of a column.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panscope.activations.store.layout import StoredColumn
from panscope.activations.store.windows import Windows
from panscope.serving import messages
from panscope.serving.client.connection import Access, Connection, Lost, Missed, Unknown
from panscope.serving.protocol import Facts, Hello, Position, Ticket, bits
from panscope.types import Site, UserError

_AHEAD = 1
"""Windows in memory that the trainer has not begun yet; beside them is the one that it is giving."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
"""Seconds before a server that was lost is tried again."""
_WAIT = 1.0
"""Seconds for which a server may think about what it has."""
Block = list[NDArray[Any]]
"""[W, D] a column."""


@dataclass
class Window:
    """A window in memory; `given` of its rows were given already."""

    feed: "Feed"
    number: int
    epoch: int
    rows: int
    """W."""
    block: Block
    given: int = 0

    def piece(self, count: int) -> list[Tensor]:
        """[count, D] a column, views of the next rows."""
        part = slice(self.given, self.given + count)
        return [messages.tensor(rows[part], column) for rows, column in zip(self.block, self.feed.columns, strict=True)]


class Feed:
    """Fetches from the server at `address` after `begin`, until `stop` is set."""

    def __init__(self, address: str, hello: Hello, seed: int, *, access: Access, changed: threading.Condition) -> None:
        self.address, self._hello, self._seed, self._access = address, hello, seed, access
        self._changed = changed
        self._stop = threading.Event()
        self.facts: Facts | None = None
        """What the server said; None until it has answered once. The next two follow from it."""
        self.columns: list[StoredColumn] = []
        self.windows: Windows | None = None
        self.error: UserError | None = None
        """Why this can never work."""
        self.lost: str | None = None
        """Why the server does not answer now."""
        self.said: deque[str] = deque()
        """What a person should hear."""
        self._ready: deque[Window] = deque()
        self._free: list[Block] = []
        self._epoch, self._fetched = 0, np.zeros(0, dtype=np.bool_)
        self._generation = 0
        self._begun = False
        self._done = 0.0
        self._pause = _FIRST_PAUSE
        self._thread = threading.Thread(target=self._run_to_the_end, name=f"panscope-feed {address}", daemon=True)

    # What the trainer calls, all but the first and last with `changed` held.

    def start(self) -> None:
        """Say hello, and wait for `begin`."""
        self._thread.start()

    @property
    def begun(self) -> bool:
        """Whether it fetches."""
        return self._begun

    @property
    def ready(self) -> bool:
        """Whether a window can be taken."""
        return bool(self._ready)

    @property
    def progress(self) -> float:
        """Epochs that were taken of this slice."""
        return self._done

    @property
    def alive(self) -> bool:
        """Whether its thread is still there."""
        return self._thread.is_alive()

    def begin(self, epoch: int, had: NDArray[np.bool_]) -> None:
        """Fetch, from now on, what was not had; what was fetched before is let go."""
        assert self.windows is not None
        self._generation += 1
        self._begun = True
        self._ready.clear()
        self._epoch, self._fetched = epoch, had.copy()
        self._done = epoch + had.sum() / len(had)
        self._changed.notify_all()

    def take(self) -> Window:
        """The window that came first."""
        window = self._ready.popleft()
        self._changed.notify_all()
        self._done += 1 / len(self._fetched)
        return window

    def give_back(self, window: Window) -> None:
        """All rows of a window were given and copied."""
        self._free.append(window.block)

    def stop(self) -> None:
        """End soon."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for the end after `stop`."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    # The thread.

    def _run_to_the_end(self) -> None:
        try:
            self._run()
        except UserError as error:
            self.error = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Connection(self.address, self._access) as connection:
                    self._meet(connection)
                    while not self._stop.is_set():
                        self._fetch_one(connection)
                    connection.bye(self._hello.trainer)
            except Lost as error:
                self._note_lost(str(error))
                self._stop.wait(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            except Unknown:
                self._stop.wait(_FIRST_PAUSE)

    def _meet(self, connection: Connection) -> None:
        """Hear what is served; raises UserError if it is not what it was before."""
        facts = connection.hello(self._hello)
        if self.facts is not None and facts != self.facts:
            raise UserError(
                f"the server {self.address!r} came back with another store, slice or --window-rows: start it with what "
                "it had before, or start the trainer again"
            )
        with self._changed:
            if self.lost is not None:
                self.said.append(f"the server {self.address} is back")
            self.lost = None
            if self.facts is None:
                self.facts, self.windows = facts, facts.windows()
                self.columns = _columns(facts, self._hello.sites)
            self._changed.notify_all()

    def _note_lost(self, why: str) -> None:
        with self._changed:
            if self.lost is None:
                self.said.append(f"the server {self.address} does not answer ({why}): trying again until it does")
            self.lost = why
            self._changed.notify_all()

    def _fetch_one(self, connection: Connection) -> None:
        """One window that was not fetched in this epoch, if there is room for it and the server has one."""
        room = self._room(connection)
        if room is None:
            return
        generation, epoch, had = room
        offered = connection.next(self._position(epoch, had, _WAIT))
        wanted = [window for window in offered if window < len(had) and not had[window]]
        if not wanted:
            return
        try:
            window = self._fetched_window(connection, epoch, wanted[0])
        except Missed:
            return
        if window is None:
            return
        with self._changed:
            if generation != self._generation:
                return
            self._pause = _FIRST_PAUSE
            self._ready.append(window)
            self._fetched[window.number] = True
            if self._fetched.all():
                self._epoch, self._fetched = epoch + 1, np.zeros_like(self._fetched)
            self._changed.notify_all()

    def _room(self, connection: Connection) -> tuple[int, int, NDArray[np.bool_]] | None:
        """Wait until a window may be fetched; None if that takes long: then the server was told that we are here."""
        assert self.facts is not None
        with self._changed:
            self._changed.wait_for(lambda: self._may_fetch() or self._stop.is_set(), self.facts.forget / 3)
            found = self._generation, self._epoch, self._fetched.copy()
            if self._may_fetch() and not self._stop.is_set():
                return found
        if self._begun and not self._stop.is_set():
            connection.next(self._position(found[1], found[2], 0))
        return None

    def _may_fetch(self) -> bool:
        return self._begun and len(self._ready) < _AHEAD

    def _position(self, epoch: int, had: NDArray[np.bool_], wait: float) -> Position:
        return Position(trainer=self._hello.trainer, epoch=epoch, had=bits(had), wait=wait)

    def _fetched_window(self, connection: Connection, epoch: int, number: int) -> Window | None:
        """A window with its rows in the order of the epoch; None if the trainer stops meanwhile."""
        assert self.windows is not None
        _, rows = self.windows.bounds(number)
        place = _inverse(self.windows.permutation(self._seed, epoch, number).numpy())
        block = self._block()
        ticket = Ticket(trainer=self._hello.trainer, epoch=epoch, window=number, sites=self._hello.sites)
        begin = 0
        for message in connection.window(ticket, self.columns, rows):
            end = begin + len(message[0])
            for kept, came in zip(block, message, strict=True):
                kept[place[begin:end]] = came
            begin = end
            if self._stop.is_set():
                return None
        return Window(self, number, epoch, rows, block)

    def _block(self) -> Block:
        """Room for the largest window."""
        assert self.windows is not None
        if self._free:
            return self._free.pop()
        rows = max(self.windows.bounds(window)[1] for window in range(len(self.windows)))
        return [messages.empty(column, rows) for column in self.columns]


def _columns(facts: Facts, sites: Sequence[str]) -> list[StoredColumn]:
    manifest = facts.manifest
    widths = {name: manifest.sites[name].width for name in sites}
    return [*(manifest.column(Site.parse(name), width) for name, width in widths.items()), StoredColumn.of_tokens()]


def _inverse(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """[W] the place at which each stored row is given."""
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place
