"""What a server does, network aside: a thread that reads windows into memory, and answers to trainers.

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
    Facts,
    Hello,
    Offer,
    Position,
    Ticket,
    error,
    from_bits,
)
from panscope.serving.server.buffer import Buffer, WindowChoice
from panscope.serving.server.health import Health, TrainerHealth, WindowHealth
from panscope.serving.server.meter import RateMeter
from panscope.types import Site, UserError


class ServiceLimits(Config):
    """How much a server holds, and for how long it waits."""

    window_rows: int = 65_536
    windows: int = 8
    """In memory at a time."""
    grace: float = 10.0
    """Seconds for which a window stays for trainers that lag while others have nothing left."""
    forget: float = 60.0
    """Seconds after which a trainer that says nothing is forgotten."""


@dataclass(frozen=True)
class _Window:
    """[W, D] of every column, by its folder's name."""

    columns: dict[str, NDArray[Any]]
    bytes: int


class Service:
    """Serves `sites` of one slice of a store; `start` it, and `close` it."""

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
        self._memory: dict[int, _Window] = {}
        self._rows, self._served, self._read = RateMeter(clock), RateMeter(clock), RateMeter(clock)
        self._changed = threading.Condition()
        self._closing = False
        self.failure: UserError | None = None
        """Why nothing more can be read, once that is so."""
        self.on_failure: Callable[[], None] = lambda: None
        """Called when the reading has ended, for that or because of `close`."""
        self._reader = threading.Thread(target=self._read_on, name="panscope-serve", daemon=True)

    def start(self) -> None:
        """Begin to read as soon as a trainer is there."""
        self._reader.start()

    def close(self) -> None:
        """Answer those that wait, and end the reading."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._reader.is_alive():
            self._reader.join()

    @property
    def window_bytes(self) -> int:
        """Of the largest window."""
        rows = max(self.windows.bounds(window)[1] for window in range(len(self.windows)))
        return rows * sum(column.row_bytes for column in self._columns)

    def hello(self, hello: Hello) -> Facts:
        """Take a trainer in; raises an error with the word REFUSED if it has come to the wrong server."""
        manifest = self._store.manifest
        if hello.weights not in (None, manifest.origin.weights):
            raise self.refuse(
                hello.trainer,
                f"its activations are of the model {manifest.origin.model!r} with weights {manifest.origin.weights}, "
                f"and the trainer's model has weights {hello.weights}: train with the model that was collected from",
            )
        self._check_serves(hello.trainer, hello.sites)
        with self._changed:
            self._check_works()
            if hello.trainer not in self._buffer.trainers:
                self._log(f"trainer {hello.trainer} came")
            self._buffer.meet(hello.trainer)
        sites = {name: manifest.sites[name] for name in hello.sites}
        return Facts(
            manifest=manifest.replace(sites={name: site.model_dump() for name, site in sites.items()}),
            window_rows=self._limits.window_rows,
            part=str(self._part),
            forget=self._limits.forget,
        )

    def bye(self, bye: Bye) -> None:
        """Forget a trainer that goes."""
        with self._changed:
            if self._buffer.trainers.pop(bye.trainer, None) is not None:
                self._log(f"trainer {bye.trainer} went")
            self._changed.notify_all()

    def refuse(self, trainer: str, why: str) -> Exception:
        """The error to raise; it is logged."""
        self._log(f"refused trainer {trainer}: {why}")
        return error(REFUSED, why)

    def next(self, position: Position) -> Offer:
        """The windows that a trainer can take, waiting until there are some."""
        had = from_bits(position.had, len(self.windows))
        until = self._clock() + position.wait
        with self._changed:
            self._check_known(position.trainer)
            self._buffer.heard(position.trainer, position.epoch, had)
            self._changed.notify_all()
            while True:
                self._check_known(position.trainer)
                offered = self._asked(position.trainer) if position.wait else []
                left = until - self._clock()
                if offered or left <= 0 or self._closing:
                    return Offer(windows=tuple(offered))
                self._changed.wait(left)

    def _asked(self, name: str) -> list[int]:
        """What a trainer can take; the reading thread wakes if it is the first time that this is nothing."""
        trainer = self._buffer.trainers[name]
        was_hungry = trainer.starved_since is not None
        offered = self._buffer.asks(name)
        if trainer.starved_since is not None and not was_hungry:
            self._changed.notify_all()
        return offered

    def stream(self, ticket: Ticket) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """A window's messages; raises an error with the word MISSED if it is not in memory."""
        self._check_serves(ticket.trainer, ticket.sites)
        columns = [column for column in self._columns if column.folder in _folders(ticket.sites)]
        with self._changed:
            self._check_known(ticket.trainer)
            window = self._memory.get(ticket.window)
            if window is None:
                raise error(MISSED)
        return messages.schema(columns), self._sent(ticket, columns, window)

    def _sent(self, ticket: Ticket, columns: list[StoredColumn], window: _Window) -> Iterator[pa.RecordBatch]:
        """The messages, and the book-keeping around them."""
        whole, row_bytes = False, sum(column.row_bytes for column in columns)
        with self._changed:
            self._check_known(ticket.trainer)
            self._buffer.begins(ticket.trainer, ticket.window)
            self._changed.notify_all()
        try:
            for message in messages.messages(columns, window.columns):
                yield message
                with self._changed:
                    self._check_works()
                    self._buffer.goes_on(ticket.trainer)
                    self._rows.add(len(message))
                    self._served.add(len(message) * row_bytes)
            whole = True
        finally:
            with self._changed:
                self._buffer.ends(ticket.trainer, ticket.epoch, ticket.window, whole=whole)
                self._changed.notify_all()

    def health(self) -> Health:
        """Everything that can be counted."""
        now = self._clock()
        with self._changed:
            buffer = self._buffer
            done = {name: t.epoch * buffer.windows + int(t.had.sum()) for name, t in buffer.trainers.items()}
            furthest = max(done.values(), default=0)
            return Health(
                part=str(self._part),
                windows=buffer.windows,
                rows_per_second=self._rows.rate(),
                rows_served=self._rows.total,
                bytes_read=self._read.total,
                bytes_served=self._served.total,
                resident=tuple(WindowHealth(window=w, age=now - r.loaded) for w, r in buffer.resident.items()),
                trainers=tuple(
                    TrainerHealth(
                        name=name,
                        epoch=trainer.epoch,
                        windows_had=int(trainer.had.sum()),
                        lag=furthest - done[name],
                        silent=now - trainer.heard,
                    )
                    for name, trainer in buffer.trainers.items()
                ),
                failure=None if self.failure is None else str(self.failure),
            )

    def _check_serves(self, trainer: str, sites: Sequence[str]) -> None:
        unknown = [site for site in sites if site not in self._sites]
        if unknown:
            why = f"it has no site {unknown[0]!r}, only {', '.join(self._sites)}: serve that site, or train on another"
            raise self.refuse(trainer, why)

    def _check_works(self) -> None:
        """Raise an error if nothing can be served any more."""
        if self.failure is not None or self._closing:
            raise error(FAILED, "it ends" if self.failure is None else str(self.failure))

    def _check_known(self, trainer: str) -> None:
        """Raise an error if a trainer has to say hello, or if nothing can be served any more."""
        self._check_works()
        if trainer not in self._buffer.trainers:
            raise error(UNKNOWN)

    def _read_on(self) -> None:
        """The reading thread; what ends it, ends the service."""
        failure = UserError(f"reading the store {self._store.where!r} broke off: what was said above tells why")
        try:
            self._read_what_is_wanted()
        except UserError as error:
            failure = error
        finally:
            with self._changed:
                self.failure = None if self._closing else failure
                self._changed.notify_all()
            self.on_failure()

    def _read_what_is_wanted(self) -> None:
        while (choice := self._chosen()) is not None:
            window = self._loaded(choice.window)
            with self._changed:
                self._memory[choice.window] = window
                self._buffer.loaded(choice.window)
                self._read.add(window.bytes)
                self._changed.notify_all()
            del window

    def _chosen(self) -> WindowChoice | None:
        """What to read, as soon as there is something, with room made for it; None when the server closes."""
        with self._changed:
            while not self._closing:
                for name in self._buffer.forget_silent():
                    self._log(f"trainer {name} was not heard of for {self._limits.forget:g} s and is forgotten")
                choice = self._buffer.choose()
                if choice is not None:
                    if choice.drop is not None:
                        self._buffer.drop(choice.drop)
                        del self._memory[choice.drop]
                    return choice
                self._changed.wait(self._buffer.seconds())
        return None

    def _loaded(self, window: int) -> _Window:
        first, count = self.windows.bounds(window)
        self._store.keep_only(first, count)
        self._store.fetch_ahead(self._columns, first, count)
        found, size = {}, self._store.manifest.block_rows
        for column in self._columns:
            rows = messages.empty(column, count)
            for begin in range(0, count, size):
                number = min(size, count - begin)
                rows[begin : begin + number] = messages.plain(self._store.read(column, first + begin, number))
            found[column.folder] = rows
        return _Window(found, sum(rows.nbytes for rows in found.values()))


def _folders(sites: Sequence[str]) -> set[str]:
    """The columns of these sites and that of the tokens, by name."""
    return {f"sites/{site}" for site in sites} | {StoredColumn.of_tokens().folder}
