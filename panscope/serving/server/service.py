"""The server without the network: a thread that reads windows into memory, and the handlers of trainers' requests.

Shape letters: W rows of a window, D width of a column.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from panscope.activations.store.layout import StoredColumn
from panscope.activations.store.store import Store
from panscope.activations.store.windows import Slice, Windows
from panscope.config import Config
from panscope.serving import messages
from panscope.serving.protocol import (
    FAILED,
    MISSED,
    REFUSED,
    UNKNOWN,
    Bye,
    Hello,
    Offer,
    Position,
    ServerInfo,
    Ticket,
    decode_bits,
    protocol_error,
)
from panscope.serving.server.buffer import Buffer, WindowChoice
from panscope.serving.server.health import Health, TrainerHealth, WindowHealth
from panscope.serving.server.meter import RateMeter
from panscope.types import Site, UserError


class ServiceLimits(Config):
    """Limits of a server's memory and waiting times."""

    window_rows: int = 65_536
    windows: int = 8
    """Maximum number of windows in memory."""
    grace: float = 10.0
    """Seconds for which a window is kept for lagging trainers while other trainers have no rows to receive."""
    forget: float = 60.0
    """Seconds of inactivity after which a trainer is forgotten."""


@dataclass(frozen=True)
class _Window:
    """A window in memory."""

    columns: dict[str, NDArray[Any]]
    """[W, D] per column, by folder name."""
    bytes: int


class Service:
    """Serves `sites` of one slice of a store, from `start` to `close`."""

    def __init__(
        self,
        store: Store,
        sites: Sequence[Site],
        part: Slice,
        limits: ServiceLimits,
        *,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises UserError if the store lacks a site, or has fewer blocks than there are slices."""
        self._store, self._part, self._limits, self._log, self._clock = store, part, limits, log, clock
        self._sites = tuple(str(site) for site in sites)
        self._columns = store.columns(sites)
        self.windows = Windows(store.rows, limits.window_rows, store.manifest.cut, part)
        self._buffer = Buffer(len(self.windows), limits.windows, limits.grace, limits.forget, clock)
        self._loaded_windows: dict[int, _Window] = {}
        self._rows_sent, self._bytes_sent, self._bytes_read = RateMeter(clock), RateMeter(clock), RateMeter(clock)
        self._condition = threading.Condition()
        self._closing = False
        self.failure: UserError | None = None
        """Why reading has failed; None while it works."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called when the reading thread ends, after a failure or `close`."""
        self._reader = threading.Thread(target=self._run_reader, name="panscope-serve", daemon=True)

    def start(self) -> None:
        """Start the reading thread, which reads as soon as a trainer connects."""
        self._reader.start()

    def close(self) -> None:
        """Answer waiting requests and stop the reading thread."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if self._reader.is_alive():
            self._reader.join()

    @property
    def window_bytes(self) -> int:
        """Size of the largest window in memory."""
        rows = max(self.windows.bounds(window)[1] for window in range(len(self.windows)))
        return rows * sum(column.row_bytes for column in self._columns)

    def hello(self, hello: Hello) -> ServerInfo:
        """Register a trainer; raises an error with the code REFUSED if it needs another model or other sites."""
        manifest = self._store.manifest
        weights = manifest.origin.model_identity.weights
        if hello.weights not in (None, weights):
            raise self.refuse(
                hello.trainer,
                f"the store's activations are from the model {manifest.origin.model!r} with weights {weights}, and the "
                f"trainer's model has weights {hello.weights}: train with the model that the activations were "
                "collected from",
            )
        self._check_serves(hello.trainer, hello.sites)
        with self._condition:
            self._check_running()
            if hello.trainer not in self._buffer.trainers:
                self._log(f"trainer {hello.trainer} connected")
            self._buffer.add_trainer(hello.trainer)
        sites = {name: manifest.sites[name] for name in hello.sites}
        return ServerInfo(
            manifest=manifest.replace(sites={name: site.model_dump() for name, site in sites.items()}),
            window_rows=self._limits.window_rows,
            part=str(self._part),
            forget=self._limits.forget,
        )

    def bye(self, bye: Bye) -> None:
        """Remove a trainer that disconnects."""
        with self._condition:
            if self._buffer.trainers.pop(bye.trainer, None) is not None:
                self._log(f"trainer {bye.trainer} disconnected")
            self._condition.notify_all()

    def refuse(self, trainer: str, why: str) -> Exception:
        """Log that a trainer is refused; returns the error to raise."""
        self._log(f"refused trainer {trainer}: {why}")
        return protocol_error(REFUSED, why)

    def next(self, position: Position) -> Offer:
        """The windows that can be sent to a trainer, after waiting at most `position.wait` seconds for one."""
        received = decode_bits(position.had, len(self.windows))
        until = self._clock() + position.wait
        with self._condition:
            self._check_known(position.trainer)
            self._buffer.update_position(position.trainer, position.epoch, received)
            self._condition.notify_all()
            while True:
                self._check_known(position.trainer)
                offered = self._offer(position.trainer) if position.wait else []
                left = until - self._clock()
                if offered or left <= 0 or self._closing:
                    return Offer(windows=tuple(offered))
                self._condition.wait(left)

    def _offer(self, name: str) -> list[int]:
        """The windows that can be sent to a trainer; wakes the reading thread when the trainer becomes starved."""
        trainer = self._buffer.trainers[name]
        was_starved = trainer.starved_since is not None
        offered = self._buffer.offer(name)
        if trainer.starved_since is not None and not was_starved:
            self._condition.notify_all()
        return offered

    def stream(self, ticket: Ticket) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Schema and messages of a window; raises an error with the code MISSED if it is not in memory."""
        self._check_serves(ticket.trainer, ticket.sites)
        columns = [column for column in self._columns if column.folder in _column_folders(ticket.sites)]
        with self._condition:
            self._check_known(ticket.trainer)
            window = self._loaded_windows.get(ticket.window)
            if window is None:
                raise protocol_error(MISSED)
        return messages.schema(columns), self._stream_window(ticket, columns, window)

    def _stream_window(self, ticket: Ticket, columns: list[StoredColumn], window: _Window) -> Iterator[pa.RecordBatch]:
        """The messages of a window, with the bookkeeping before, between and after them."""
        whole, row_bytes = False, sum(column.row_bytes for column in columns)
        with self._condition:
            self._check_known(ticket.trainer)
            self._buffer.start_sending(ticket.trainer, ticket.window)
            self._condition.notify_all()
        try:
            for message in messages.messages(columns, window.columns):
                yield message
                with self._condition:
                    self._check_running()
                    self._buffer.record_activity(ticket.trainer)
                    self._rows_sent.add(len(message))
                    self._bytes_sent.add(len(message) * row_bytes)
            whole = True
        finally:
            with self._condition:
                self._buffer.finish_sending(ticket.trainer, ticket.epoch, ticket.window, whole=whole)
                self._condition.notify_all()

    def health(self) -> Health:
        """The current status."""
        now = self._clock()
        with self._condition:
            buffer = self._buffer
            done = {name: t.epoch * buffer.windows + int(t.received.sum()) for name, t in buffer.trainers.items()}
            furthest = max(done.values(), default=0)
            return Health(
                part=str(self._part),
                windows=buffer.windows,
                rows_per_second=self._rows_sent.rate(),
                rows_served=self._rows_sent.total,
                bytes_read=self._bytes_read.total,
                bytes_served=self._bytes_sent.total,
                resident=tuple(WindowHealth(window=w, age=now - r.loaded) for w, r in buffer.resident.items()),
                trainers=tuple(
                    TrainerHealth(
                        name=name,
                        epoch=trainer.epoch,
                        windows_had=int(trainer.received.sum()),
                        lag=furthest - done[name],
                        silent=now - trainer.last_seen,
                    )
                    for name, trainer in buffer.trainers.items()
                ),
                failure=None if self.failure is None else str(self.failure),
            )

    def _check_serves(self, trainer: str, sites: Sequence[str]) -> None:
        unknown = [site for site in sites if site not in self._sites]
        if unknown:
            why = (
                f"the server has no site {unknown[0]!r}, only {', '.join(self._sites)}: serve that site, or train on "
                "another"
            )
            raise self.refuse(trainer, why)

    def _check_running(self) -> None:
        """Raise an error if the server has failed or is shutting down."""
        if self.failure is not None or self._closing:
            raise protocol_error(FAILED, "the server is shutting down" if self.failure is None else str(self.failure))

    def _check_known(self, trainer: str) -> None:
        """Raise an error if a trainer has to reconnect, or if the server has failed or is shutting down."""
        self._check_running()
        if trainer not in self._buffer.trainers:
            raise protocol_error(UNKNOWN)

    def _run_reader(self) -> None:
        """The reading thread; a failure in it is a failure of the service."""
        failure = UserError(f"reading the store {self._store.where!r} failed: see the error above")
        try:
            self._read_windows()
        except UserError as error:
            failure = error
        finally:
            with self._condition:
                self.failure = None if self._closing else failure
                self._condition.notify_all()
            self.on_failure()

    def _read_windows(self) -> None:
        while (choice := self._next_choice()) is not None:
            window = self._load(choice.window)
            with self._condition:
                self._loaded_windows[choice.window] = window
                self._buffer.add_window(choice.window)
                self._bytes_read.add(window.bytes)
                self._condition.notify_all()
            del window

    def _next_choice(self) -> WindowChoice | None:
        """Wait for a window to read and drop the window that it replaces; None when the server closes."""
        with self._condition:
            while not self._closing:
                for name in self._buffer.forget_inactive():
                    self._log(f"trainer {name} was inactive for {self._limits.forget:g} s and is forgotten")
                choice = self._buffer.choose()
                if choice is not None:
                    if choice.drop is not None:
                        self._buffer.drop_window(choice.drop)
                        del self._loaded_windows[choice.drop]
                    return choice
                self._condition.wait(self._buffer.seconds_until_change())
        return None

    def _load(self, window: int) -> _Window:
        first, count = self.windows.bounds(window)
        self._store.keep_only(first, count)
        self._store.fetch_ahead(self._columns, first, count)
        columns, size = {}, self._store.manifest.block_rows
        for column in self._columns:
            rows = messages.empty_rows(column, count)
            for begin in range(0, count, size):
                number = min(size, count - begin)
                rows[begin : begin + number] = messages.to_array(self._store.read(column, first + begin, number))
            columns[column.folder] = rows
        return _Window(columns, sum(rows.nbytes for rows in columns.values()))


def _column_folders(sites: Sequence[str]) -> set[str]:
    """Folder names of the columns of these sites and of the tokens."""
    return {f"sites/{site}" for site in sites} | {StoredColumn.of_tokens().folder}
