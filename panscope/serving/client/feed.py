"""A background thread that prefetches one server's windows and puts their rows in the order in which they are used.

The thread and the trainer share state under one condition. A feed does not track which rows have been used, only which
windows it need not fetch. When its server is lost it retries for ever, with exponential backoff.

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
from panscope.serving.client.connection import Access, Connection, ConnectionLost, UnknownTrainer, WindowMissed
from panscope.serving.protocol import Hello, Position, ServerInfo, Ticket, encode_bits
from panscope.types import Site, UserError

_MAX_READY = 1
"""Maximum number of prefetched windows, in addition to the one that the trainer is using."""
_MIN_PAUSE, _MAX_PAUSE = 0.25, 30.0
"""Limits of the pause in seconds before a lost server is tried again."""
_REQUEST_SECONDS = 1.0
"""Seconds for which a server may wait for a window to offer."""
Block = list[NDArray[Any]]
"""[W, D] per column."""


@dataclass
class Window:
    """A window in memory, of which the first `used` rows have been used."""

    feed: "Feed"
    number: int
    epoch: int
    rows: int
    """W."""
    block: Block
    used: int = 0

    def piece(self, count: int) -> list[Tensor]:
        """[count, D] per column: views of the next rows."""
        part = slice(self.used, self.used + count)
        return [
            messages.to_tensor(rows[part], column) for rows, column in zip(self.block, self.feed.columns, strict=True)
        ]


class Feed:
    """Fetches windows from the server at `address`, from `start_fetching` to `stop`."""

    def __init__(
        self, address: str, hello: Hello, seed: int, *, access: Access, condition: threading.Condition
    ) -> None:
        self.address, self._hello, self._seed, self._access = address, hello, seed, access
        self._condition = condition
        self._stop = threading.Event()
        self.info: ServerInfo | None = None
        """What the server has; None until its first answer, as are `columns` and `windows` empty."""
        self.columns: list[StoredColumn] = []
        self.windows: Windows | None = None
        self.error: UserError | None = None
        """A permanent failure; None if there is none."""
        self.lost_reason: str | None = None
        """Why the server does not answer at present; None if it does."""
        self.notices: deque[str] = deque()
        """Messages for the user."""
        self._ready: deque[Window] = deque()
        self._free_blocks: list[Block] = []
        self._epoch, self._fetched = 0, np.zeros(0, dtype=np.bool_)
        self._generation = 0
        self._fetching = False
        self._epochs_taken = 0.0
        self._pause = _MIN_PAUSE
        self._thread = threading.Thread(target=self._run_thread, name=f"panscope-feed {address}", daemon=True)

    # Called by the trainer; all except `start`, `stop` and `join` with the condition held.

    def start(self) -> None:
        """Start the thread, which connects and waits for `start_fetching`."""
        self._thread.start()

    @property
    def fetching(self) -> bool:
        """Whether `start_fetching` has been called."""
        return self._fetching

    @property
    def ready(self) -> bool:
        """Whether a window is available."""
        return bool(self._ready)

    @property
    def epochs_taken(self) -> float:
        """Number of epochs of this slice that have been taken, with a fraction."""
        return self._epochs_taken

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def start_fetching(self, epoch: int, used: NDArray[np.bool_]) -> None:
        """Fetch the windows of `epoch` that are not in `used` [N]; windows fetched before are discarded."""
        assert self.windows is not None
        self._generation += 1
        self._fetching = True
        self._ready.clear()
        self._epoch, self._fetched = epoch, used.copy()
        self._epochs_taken = epoch + used.sum() / len(used)
        self._condition.notify_all()

    def take(self) -> Window:
        """Remove and return the window that was fetched first."""
        window = self._ready.popleft()
        self._condition.notify_all()
        self._epochs_taken += 1 / len(self._fetched)
        return window

    def recycle(self, window: Window) -> None:
        """Reuse the memory of a window whose rows have all been copied."""
        self._free_blocks.append(window.block)

    def stop(self) -> None:
        """Ask the thread to end."""
        self._stop.set()
        with self._condition:
            self._condition.notify_all()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, at most so many seconds."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    # Run by the thread.

    def _run_thread(self) -> None:
        try:
            self._run()
        except UserError as error:
            self.error = error
        finally:
            with self._condition:
                self._condition.notify_all()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Connection(self.address, self._access) as connection:
                    self._handshake(connection)
                    while not self._stop.is_set():
                        self._fetch_one(connection)
                    connection.bye(self._hello.trainer)
            except ConnectionLost as error:
                self._report_lost(str(error))
                self._stop.wait(self._pause)
                self._pause = min(2 * self._pause, _MAX_PAUSE)
            except UnknownTrainer:
                self._stop.wait(_MIN_PAUSE)

    def _handshake(self, connection: Connection) -> None:
        """Register at the server; raises UserError if it no longer serves the same rows."""
        info = connection.hello(self._hello)
        if self.info is not None and info != self.info:
            raise UserError(
                f"the server {self.address!r} was restarted with another store, slice or --window-rows: start it with "
                "the same ones as before, or restart the trainer"
            )
        with self._condition:
            if self.lost_reason is not None:
                self.notices.append(f"the server {self.address} answers again")
            self.lost_reason = None
            if self.info is None:
                self.info, self.windows = info, info.windows()
                self.columns = _columns(info, self._hello.sites)
            self._condition.notify_all()

    def _report_lost(self, why: str) -> None:
        with self._condition:
            if self.lost_reason is None:
                self.notices.append(f"the server {self.address} does not answer ({why}): retrying until it does")
            self.lost_reason = why
            self._condition.notify_all()

    def _fetch_one(self, connection: Connection) -> None:
        """Fetch a window that was not fetched in this epoch, if there is a slot for it and the server has one."""
        slot = self._wait_for_slot(connection)
        if slot is None:
            return
        generation, epoch, received = slot
        offered = connection.next(self._position(epoch, received, _REQUEST_SECONDS))
        wanted = [window for window in offered if window < len(received) and not received[window]]
        if not wanted:
            return
        try:
            window = self._fetch_window(connection, epoch, wanted[0])
        except WindowMissed:
            return
        if window is None:
            return
        with self._condition:
            if generation != self._generation:
                return
            self._pause = _MIN_PAUSE
            self._ready.append(window)
            self._fetched[window.number] = True
            if self._fetched.all():
                self._epoch, self._fetched = epoch + 1, np.zeros_like(self._fetched)
            self._condition.notify_all()

    def _wait_for_slot(self, connection: Connection) -> tuple[int, int, NDArray[np.bool_]] | None:
        """Wait for a free slot; returns the generation, the epoch and its fetched windows [N].

        If there is none for some time, sends a keep-alive request to the server and returns None.
        """
        assert self.info is not None
        with self._condition:
            self._condition.wait_for(lambda: self._has_slot() or self._stop.is_set(), self.info.forget / 3)
            state = self._generation, self._epoch, self._fetched.copy()
            if self._has_slot() and not self._stop.is_set():
                return state
        if self._fetching and not self._stop.is_set():
            connection.next(self._position(state[1], state[2], 0))
        return None

    def _has_slot(self) -> bool:
        return self._fetching and len(self._ready) < _MAX_READY

    def _position(self, epoch: int, received: NDArray[np.bool_], wait: float) -> Position:
        return Position(trainer=self._hello.trainer, epoch=epoch, had=encode_bits(received), wait=wait)

    def _fetch_window(self, connection: Connection, epoch: int, number: int) -> Window | None:
        """Fetch a window with its rows in the order of the epoch; None if the trainer stops meanwhile."""
        assert self.windows is not None
        _, rows = self.windows.bounds(number)
        position = _inverse_permutation(self.windows.permutation(self._seed, epoch, number).numpy())
        block = self._free_block()
        ticket = Ticket(trainer=self._hello.trainer, epoch=epoch, window=number, sites=self._hello.sites)
        begin = 0
        for message in connection.window(ticket, self.columns, rows):
            end = begin + len(message[0])
            for target, source in zip(block, message, strict=True):
                target[position[begin:end]] = source
            begin = end
            if self._stop.is_set():
                return None
        return Window(self, number, epoch, rows, block)

    def _free_block(self) -> Block:
        """A block for the largest window, reused if possible."""
        assert self.windows is not None
        if self._free_blocks:
            return self._free_blocks.pop()
        rows = max(self.windows.bounds(window)[1] for window in range(len(self.windows)))
        return [messages.empty_rows(column, rows) for column in self.columns]


def _columns(info: ServerInfo, sites: Sequence[str]) -> list[StoredColumn]:
    manifest = info.manifest
    widths = {name: manifest.sites[name].width for name in sites}
    return [*(manifest.column(Site.parse(name), width) for name, width in widths.items()), StoredColumn.of_tokens()]


def _inverse_permutation(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """[W] the position in `order` of each stored row."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse
