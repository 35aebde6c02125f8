"""Rows of servers as a source of training batches: every row of a slice once an epoch, whoever dies meanwhile.

Each server owns a slice, and each slice has epochs of its own: a trainer takes from whichever server has a window
ready, of several from the one it has had least of, so a server that is gone never makes it wait while others have rows,
and what it missed comes first when that server is back. Only where nobody has anything does it wait.

Which window comes when depends on who is faster; the rows of a window have an order that is a function of seed, epoch
and window. So two runs give the same rows in different order, and a resumed one exactly those that were not given.

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
from panscope.serving.protocol import Facts, Hello
from panscope.types import ActivationBatch, Site, StoppedWaiting, UserError

_LOOK = 1.0
"""Seconds after which a waiting trainer looks round at the latest."""


@dataclass(frozen=True)
class Servers:
    """Which servers to read from, and as whom."""

    addresses: tuple[str, ...]
    """Such as grpc://host:8815, one a slice."""
    access: Access = field(default_factory=Access)
    trainer: str | None = None
    """A name that no other trainer has; None makes one."""
    patience: float = 600.0
    """Seconds to wait for the first of them to answer; later there is no limit."""
    say: Callable[[str], None] = lambda sentence: None
    """Hears of servers that go and come back, in the thread that asks for batches."""


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
        """Meet the servers; `weights` is the hash of the model's weights, None takes any.

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
        self._standings: dict[tuple[int, int], TrainerProgress] = {}
        self._opened: deque[Window] = deque()
        self._begun = False
        self._asked: Callable[[], bool] = lambda: False
        self._changed = threading.Condition()
        name = servers.trainer or uuid.uuid4().hex[:12]
        hello = Hello(trainer=name, weights=weights, sites=tuple(str(site) for site in sites))
        self._feeds = [
            Feed(address, hello, seed, access=servers.access, changed=self._changed)
            for address in dict.fromkeys(servers.addresses)
        ]
        self._waiting = False
        self._closed = weakref.finalize(self, _end, self._feeds)
        for feed in self._feeds:
            feed.start()
        try:
            self.manifest: Manifest = self._first_facts(servers.patience).manifest
        except BaseException:
            self.close()
            raise

    def norms(self, site: Site) -> SiteNorms:
        """Means over all rows of the store."""
        return self.manifest.norms(site)

    @property
    def epoch(self) -> int:
        """The pass over the rows that the least advanced slice is in, from 0."""
        return min((standing.last for standing in self._standings.values()), default=0)

    def __iter__(self) -> "ServedRows":
        return self

    def __next__(self) -> ActivationBatch:
        """The next batch; raises UserError if a server refuses to go on."""
        self._begin()
        while sum(window.rows - window.given for window in self._opened) < self._batch:
            self._opened.append(self._wait_for_window())
        pieces, given, need = [], [], self._batch
        for window in self._opened:
            count = min(need, window.rows - window.given)
            pieces.append(window.piece(count))
            given.append((window, count))
            need -= count
            if not need:
                break
        *rows, tokens = (torch.cat(parts).to(self.device) for parts in zip(*pieces, strict=True))
        self._note(given)
        return ActivationBatch(dict(zip(self._sites, rows, strict=True)), *tokens.unbind(dim=1))

    def _note(self, given: list[tuple[Window, int]]) -> None:
        """The rows are the trainer's now."""
        with self._changed:
            for window, count in given:
                window.given += count
                whole = window.given == window.rows
                standing = self._standings[_rows_of(window.feed)]
                assert standing.epoch == window.epoch
                standing.give(window.number, window.given, whole=whole)
                if whole:
                    self._opened.popleft()
                    window.feed.give_back(window)

    def state_dict(self) -> dict[str, Any]:
        """Which windows of each slice were given, whole or in part."""
        standings = {f"{first}-{end}": standing.state_dict() for (first, end), standing in self._standings.items()}
        return {"seed": self._seed, "identity": self.manifest.identity, "slices": standings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state`; raises UserError if it is of another store or order, or of other slices."""
        for name, now in (("seed", self._seed), ("identity", self.manifest.identity)):
            if state[name] != now:
                raise UserError(
                    f"the checkpoint was written with {name} = {state[name]!r} of its servers' store, and now it is "
                    f"{now!r}: give what it was, or start a new run"
                )
        slices = {tuple(map(int, name.split("-"))): value for name, value in state["slices"].items()}
        with self._changed:
            self._standings = {(first, end): TrainerProgress.of(value) for (first, end), value in slices.items()}
            self._opened.clear()
            for feed in self._feeds:
                if feed.facts is not None:
                    self._admit(feed)

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Wait for servers no longer than until `asked` says so; the next batch then raises StoppedWaiting."""
        self._asked = asked

    def close(self) -> None:
        """Let the servers go; nothing can be read afterwards."""
        self._closed()

    def __enter__(self) -> "ServedRows":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _first_facts(self, patience: float) -> Facts:
        """What the first server to answer says, once every server has answered or was found not to."""
        until = time.monotonic() + patience
        with self._changed:
            while True:
                self._look_at_feeds()
                met = [feed.facts for feed in self._feeds if feed.facts is not None]
                if met and all(feed.facts is not None or feed.lost is not None for feed in self._feeds):
                    return met[0]
                left = until - time.monotonic()
                if left <= 0:
                    reasons = "; ".join(f"{feed.address}: {feed.lost}" for feed in self._feeds)
                    raise UserError(f"no server answered within {patience:g} s ({reasons}): start panscope serve")
                self._changed.wait(min(left, _LOOK))

    def _begin(self) -> None:
        """Have the servers that answered fetched from, at the first batch."""
        if not self._begun:
            self._begun = True
            with self._changed:
                self._look_at_feeds()
            for first, end in self._unserved():
                self._say(
                    f"rows {first:,} to {end - 1:,} of {self.manifest.rows:,} are on no server that answered: they are "
                    "not learned from until one does"
                )

    def _unserved(self) -> list[tuple[int, int]]:
        """The rows of the store between the slices that are known."""
        assert self.manifest.rows is not None
        slices = sorted(self._standings)
        ends, firsts = [0, *(end for _, end in slices)], [*(first for first, _ in slices), self.manifest.rows]
        return [(end, first) for end, first in zip(ends, firsts, strict=True) if end < first]

    def _wait_for_window(self) -> Window:
        """From the server of which least was given, of those that have one ready."""
        with self._changed:
            while True:
                self._look_at_feeds()
                ready = [feed for feed in self._feeds if feed.ready]
                if ready:
                    self._waiting = False
                    return self._taken(min(ready, key=lambda feed: feed.progress))
                if all(feed.lost is not None for feed in self._feeds) and not self._waiting:
                    self._waiting = True
                    self._say("no server answers: waiting for the first that does")
                if self._asked():
                    raise StoppedWaiting
                self._changed.wait(_LOOK)

    def _taken(self, feed: Feed) -> Window:
        """The next window of a feed, from the row on that was not given yet."""
        window, standing = feed.take(), self._standings[_rows_of(feed)]
        if window.epoch == standing.epoch:
            window.given = standing.partial.get(window.number, 0)
        return window

    def _look_at_feeds(self) -> None:
        """Pass on what they say, and take in those that answered for the first time."""
        for feed in self._feeds:
            while feed.said:
                self._say(feed.said.popleft())
            alive = feed.alive
            if feed.error is not None:
                raise feed.error
            assert alive, f"the thread that reads from {feed.address} has died, or this source was closed"
            if feed.facts is not None and (_rows_of(feed) not in self._standings or (self._begun and not feed.begun)):
                self._admit(feed)

    def _admit(self, feed: Feed) -> None:
        """Give a feed its place, and let it fetch what was not given yet."""
        assert feed.facts is not None and feed.windows is not None
        self._check_fits(feed)
        standing = self._standings.setdefault(_rows_of(feed), TrainerProgress(len(feed.windows)))
        if standing.windows != len(feed.windows):
            raise UserError(
                f"the server {feed.address!r} cuts its slice into {len(feed.windows)} windows, and the checkpoint has "
                f"{standing.windows}: start it with the --window-rows of before"
            )
        if self._begun:
            feed.begin(standing.epoch, standing.had)

    def _check_fits(self, feed: Feed) -> None:
        """Raise UserError if a server has other rows than the others, or rows that another one has too."""
        assert feed.facts is not None
        first, end = mine = _rows_of(feed)
        address = feed.address
        for other in self._feeds:
            if other is feed or other.facts is None:
                continue
            if other.facts.manifest != feed.facts.manifest:
                raise UserError(
                    f"the servers {other.address!r} and {address!r} have different stores: give servers of one"
                )
            if _overlap(mine, _rows_of(other)):
                raise UserError(
                    f"the servers {other.address!r} and {address!r} both have row {max(first, _rows_of(other)[0])}, "
                    "which would be given twice: start them with different slices"
                )
        for known in self._standings:
            if known != mine and _overlap(known, mine):
                raise UserError(
                    f"the server {address!r} has rows {first} to {end - 1}, and the checkpoint was written with a "
                    f"slice of rows {known[0]} to {known[1] - 1}: start the servers with the slices of before"
                )


def _rows_of(feed: Feed) -> tuple[int, int]:
    assert feed.windows is not None
    return feed.windows.first, feed.windows.end


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _end(feeds: list[Feed]) -> None:
    for feed in feeds:
        feed.stop()
    for feed in feeds:
        feed.join(10.0)
