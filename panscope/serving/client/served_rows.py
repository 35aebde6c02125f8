"""Rows from activation servers as a source of training batches: every row of a slice once per epoch, despite crashes.

Each server has one slice, and each slice has its own epochs. A trainer takes windows from any server that has one
ready, preferring the slice that is least advanced. So an unavailable server does not block the trainer while others
have rows, and its rows are preferred once it is back. The trainer waits only if no server has a window ready.

The order of windows depends on the servers' speeds; the order of the rows in a window is a function of seed, epoch and
window. So two runs use the same rows in different orders, and a resumed run uses exactly the rows not yet used.

Shape letters: B rows of a batch, D width of a site.
"""

import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from panscope.activations.norms import SiteNorms
from panscope.activations.store.manifest import Manifest
from panscope.serving.allocator import keep_large_blocks
from panscope.serving.client.connection import Access, check_address
from panscope.serving.client.feed import Feed, Window
from panscope.serving.client.progress import TrainerProgress
from panscope.serving.protocol import Hello, ServerInfo
from panscope.types import ActivationBatch, Site, StoppedWaiting, UserError

_POLL_SECONDS = 1.0
"""Maximum seconds between two checks of the feeds while waiting."""


@dataclass(frozen=True)
class Servers:
    """The servers to read from, and how."""

    addresses: tuple[str, ...]
    """One address per slice, such as grpc://host:8815."""
    access: Access = field(default_factory=Access)
    trainer: str | None = None
    """A name that no other trainer has; None for a random one."""
    patience: float = 600.0
    """Timeout in seconds for the first server to answer; afterwards there is no limit."""
    say: Callable[[str], None] = lambda sentence: None
    """Called with messages about servers lost and found, in the thread that requests batches."""


class ServedRows:
    """An endless iterator of batches of exactly `batch` rows; `close` it, or use it as a context manager."""

    def __init__(
        self,
        servers: Servers,
        sites: Sequence[Site],
        *,
        batch: int,
        seed: int,
        weights: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Connect to the servers; `weights` is the hash of the model's weights, None accepts any model.

        Raises UserError if a server refuses, if two servers overlap, or if none answers.
        """
        if not servers.addresses:
            raise UserError("servers = [] names no server: give the addresses of the servers to train from")
        for address in servers.addresses:
            check_address(address)
        keep_large_blocks()
        self._sites, self._batch, self._seed = tuple(sites), batch, seed
        self._say = servers.say
        self.device = device or torch.device("cpu")
        self._progress: dict[tuple[int, int], TrainerProgress] = {}
        self._open_windows: deque[Window] = deque()
        self._started = False
        self._should_stop: Callable[[], bool] = lambda: False
        self._condition = threading.Condition()
        name = servers.trainer or uuid.uuid4().hex[:12]
        hello = Hello(trainer=name, weights=weights, sites=tuple(str(site) for site in sites))
        self._feeds = [
            Feed(address, hello, seed, access=servers.access, condition=self._condition)
            for address in dict.fromkeys(servers.addresses)
        ]
        self._reported_waiting = False
        self._finalizer = weakref.finalize(self, _stop_feeds, self._feeds)
        for feed in self._feeds:
            feed.start()
        try:
            self.manifest: Manifest = self._wait_for_first_server(servers.patience).manifest
        except BaseException:
            self.close()
            raise

    def norms(self, site: Site) -> SiteNorms:
        """Means over all rows of the store, of all slices."""
        return self.manifest.norms(site)

    @property
    def epoch(self) -> int:
        """The epoch of the least advanced slice, from 0."""
        return min((progress.last_epoch for progress in self._progress.values()), default=0)

    def __iter__(self) -> "ServedRows":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch; raises UserError if a server refuses this trainer."""
        self._start()
        while sum(window.rows - window.used for window in self._open_windows) < self._batch:
            self._open_windows.append(self._wait_for_window())
        pieces, given, need = [], [], self._batch
        for window in self._open_windows:
            count = min(need, window.rows - window.used)
            pieces.append(window.piece(count))
            given.append((window, count))
            need -= count
            if not need:
                break
        *rows, tokens = (torch.cat(parts).to(self.device) for parts in zip(*pieces, strict=True))
        self._mark_used(given)
        return ActivationBatch(dict(zip(self._sites, rows, strict=True)), *tokens.unbind(dim=1))

    def _mark_used(self, given: list[tuple[Window, int]]) -> None:
        """Record that `count` more rows of each window have been used."""
        with self._condition:
            for window, count in given:
                window.used += count
                whole = window.used == window.rows
                progress = self._progress[_slice_bounds(window.feed)]
                assert progress.epoch == window.epoch
                progress.advance(window.number, window.used, whole=whole)
                if whole:
                    self._open_windows.popleft()
                    window.feed.recycle(window)

    def state_dict(self) -> dict[str, Any]:
        """Which windows of each slice have been used, entirely or in part."""
        slices = {f"{first}-{end}": progress.state_dict() for (first, end), progress in self._progress.items()}
        return {"seed": self._seed, "identity": self.manifest.identity, "slices": slices}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`; raises UserError if it is from another store, seed or division into slices."""
        for name, now in (("seed", self._seed), ("identity", self.manifest.identity)):
            if state[name] != now:
                raise UserError(
                    f"the checkpoint was written with {name} = {state[name]!r} of its servers' store, and now it is "
                    f"{now!r}: restore the previous value, or start a new run"
                )
        slices = {tuple(map(int, name.split("-"))): value for name, value in state["slices"].items()}
        with self._condition:
            self._progress = {(first, end): TrainerProgress.from_state(value) for (first, end), value in slices.items()}
            self._open_windows.clear()
            for feed in self._feeds:
                if feed.info is not None:
                    self._admit(feed)

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Raise StoppedWaiting instead of waiting for servers once `asked` returns true."""
        self._should_stop = asked

    def close(self) -> None:
        """Disconnect from the servers; no batch can be read afterwards."""
        self._finalizer()

    def __enter__(self) -> "ServedRows":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_for_first_server(self, patience: float) -> ServerInfo:
        """Wait until every server has answered or failed to; returns what the first one has."""
        until = time.monotonic() + patience
        with self._condition:
            while True:
                self._poll_feeds()
                infos = [feed.info for feed in self._feeds if feed.info is not None]
                if infos and all(feed.info is not None or feed.lost_reason is not None for feed in self._feeds):
                    return infos[0]
                left = until - time.monotonic()
                if left <= 0:
                    reasons = "; ".join(f"{feed.address}: {feed.lost_reason}" for feed in self._feeds)
                    raise UserError(f"no server answered within {patience:g} s ({reasons}): start panscope serve")
                self._condition.wait(min(left, _POLL_SECONDS))

    def _start(self) -> None:
        """Start fetching from the connected servers, at the first batch."""
        if not self._started:
            self._started = True
            with self._condition:
                self._poll_feeds()
            for first, end in self._unserved():
                self._say(
                    f"rows {first:,} to {end - 1:,} of {self.manifest.rows:,} are on no server that has answered: "
                    "training does not use them until one does"
                )

    def _unserved(self) -> list[tuple[int, int]]:
        """Row ranges (first, end) of the store that are in no known slice."""
        assert self.manifest.rows is not None
        slices = sorted(self._progress)
        ends, firsts = [0, *(end for _, end in slices)], [*(first for first, _ in slices), self.manifest.rows]
        return [(end, first) for end, first in zip(ends, firsts, strict=True) if end < first]

    def _wait_for_window(self) -> Window:
        """Wait for a window; of several, takes one from the least advanced slice."""
        with self._condition:
            while True:
                self._poll_feeds()
                ready = [feed for feed in self._feeds if feed.ready]
                if ready:
                    self._reported_waiting = False
                    return self._take_from(min(ready, key=lambda feed: feed.epochs_taken))
                if all(feed.lost_reason is not None for feed in self._feeds) and not self._reported_waiting:
                    self._reported_waiting = True
                    self._say("no server answers: waiting until one does")
                if self._should_stop():
                    raise StoppedWaiting
                self._condition.wait(_POLL_SECONDS)

    def _take_from(self, feed: Feed) -> Window:
        """The next window of a feed, starting at its first unused row."""
        window, progress = feed.take(), self._progress[_slice_bounds(feed)]
        if window.epoch == progress.epoch:
            window.used = progress.partial.get(window.number, 0)
        return window

    def _poll_feeds(self) -> None:
        """Forward the feeds' messages and errors, and admit those whose servers have answered for the first time."""
        for feed in self._feeds:
            while feed.notices:
                self._say(feed.notices.popleft())
            alive = feed.alive
            if feed.error is not None:
                raise feed.error
            assert alive, f"the thread that reads from {feed.address} has died, or this source was closed"
            if feed.info is None:
                continue
            if _slice_bounds(feed) not in self._progress or (self._started and not feed.fetching):
                self._admit(feed)

    def _admit(self, feed: Feed) -> None:
        """Register a feed's slice, and start fetching its unused windows if the first batch has been requested."""
        assert feed.info is not None and feed.windows is not None
        self._check_fits(feed)
        progress = self._progress.setdefault(_slice_bounds(feed), TrainerProgress(len(feed.windows)))
        if progress.windows != len(feed.windows):
            raise UserError(
                f"the server {feed.address!r} divides its slice into {len(feed.windows)} windows, and the checkpoint "
                f"has {progress.windows}: start it with the same --window-rows as before"
            )
        if self._started:
            feed.start_fetching(progress.epoch, progress.used)

    def _check_fits(self, feed: Feed) -> None:
        """Raise UserError if a server has another store than the others, or rows in common with another slice."""
        assert feed.info is not None
        first, end = mine = _slice_bounds(feed)
        address = feed.address
        for other in self._feeds:
            if other is feed or other.info is None:
                continue
            if other.info.manifest != feed.info.manifest:
                raise UserError(
                    f"the servers {other.address!r} and {address!r} have different stores: give servers of one store"
                )
            if _overlap(mine, theirs := _slice_bounds(other)):
                raise UserError(
                    f"the servers {other.address!r} and {address!r} both have row {max(first, theirs[0])}, "
                    "which would be used twice: start them with different slices"
                )
        for known in self._progress:
            if known != mine and _overlap(known, mine):
                raise UserError(
                    f"the server {address!r} has rows {first} to {end - 1}, and the checkpoint was written with a "
                    f"slice of rows {known[0]} to {known[1] - 1}: start the servers with the same slices as before"
                )


def _slice_bounds(feed: Feed) -> tuple[int, int]:
    assert feed.windows is not None
    return feed.windows.first, feed.windows.end


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _stop_feeds(feeds: list[Feed]) -> None:
    for feed in feeds:
        feed.stop()
    for feed in feeds:
        feed.join(10.0)
