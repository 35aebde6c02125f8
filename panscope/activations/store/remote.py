"""The files of a store that is in an object store (S3, Google Cloud Storage), through copies in a bounded folder.

A file is fetched whole before it is read, in ranges, several at once. The copies have at most so many bytes: those that
were used least recently make room for others. A removed one that is mapped stays readable, and its bytes are given back
when it is let go of. Several processes may share the folder: what one has fetched, the others find there.
"""

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import xxhash

from panscope.activations.store.manifest import FILE
from panscope.extras import optional
from panscope.types import UserError

RANGE = 16 * 2**20
"""Bytes asked for in one request."""
RANGES_AT_ONCE = 8
FILES_AT_ONCE = 4
PATIENCE = timedelta(minutes=2)
"""How long a request is tried again, and how long room in the folder of copies is waited for."""
FIRST_PATIENCE = timedelta(seconds=10)
"""The same of the very first request, before which a wrong address is more likely than a fault."""
POLL = timedelta(milliseconds=20)
"""How often it is looked whether there is room, or whether another process has finished a copy."""
_ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"), "gs": ("GOOGLE_BASE_URL",)}
"""What the client reads the address of another service from, the usual one first."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}
SCHEMES = tuple(_ENDPOINTS)


@dataclass(frozen=True)
class _Object:
    """What the object store says of a file."""

    size: int
    changed: int
    """When, in seconds."""
    tag: str


class RemoteFiles:
    """Files below an address such as s3://bucket/prefix."""

    stays = False

    def __init__(self, url: str, cache: Path, cache_bytes: int, *, patience: timedelta = PATIENCE) -> None:
        """Copies go into the folder `cache`; raises UserError if the store cannot be reached."""
        self.where = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._known: dict[str, _Object] = {}
        self._remote = self._connected(min(patience, FIRST_PATIENCE))
        manifest = self._object(FILE)
        self._remote = self._connected(patience)
        version = xxhash.xxh3_128_hexdigest(f"{self.where}\n{manifest.tag}".encode())
        self._copies = _Copies(cache, cache_bytes, f"panscope-{version}", patience)
        self._needed: tuple[str, ...] = ()
        self._ahead: dict[str, Future[None]] = {}
        self._files = ThreadPoolExecutor(FILES_AT_ONCE, "panscope-files")
        self._ranges = ThreadPoolExecutor(RANGES_AT_ONCE, "panscope-ranges")
        self._thread = threading.local()

    def path(self, name: str) -> Path:
        """A copy of the file, fetched if it is not there; it is not removed before this thread asks for another one.

        Raises UserError if there is no such file, it cannot be fetched, or no room can be made for it.
        """
        self._thread.held = None
        job = self._ahead.pop(name, None)
        if job is not None and not job.cancel():
            job.result()
        self._thread.held = self._copy(name)
        return self._copies.place(name)

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """Begin to fetch these files, which are needed at the same time, instead of those that were named before."""
        self._thread.held = None
        for job in self._ahead.values():
            job.cancel()
        self._needed = tuple(dict.fromkeys(names))
        self._ahead = {name: self._files.submit(self._bring, name) for name in self._needed}

    def _bring(self, name: str) -> None:
        self._copy(name)

    def _copy(self, name: str) -> "_Held":
        """A whole copy of the object as it is now, held."""
        wanted = self._object(name)
        while True:
            held = self._copies.found(name, wanted)
            if held is not None:
                return held
            with self._copies.begun(name) as file:
                if file is None:
                    time.sleep(POLL.total_seconds())
                elif not self._copies.found(name, wanted):  # Else another process has just finished it.
                    self._make_room(file, name, wanted.size)
                    self._fetch(file, name, wanted.size)
                    self._copies.finish(file, name, wanted)

    def _make_room(self, file: int, name: str, size: int) -> None:
        """Reserve the bytes of a file; raises UserError if too many are needed at once."""
        needed = dict.fromkeys([*self._needed, name])
        at_once = sum(self._known[n].size for n in needed if n in self._known)
        if not self._copies.make_room(file, size, needed, possible=at_once <= self._copies.limit):
            raise UserError(
                f"activations.cache_gib allows {self._copies.limit} bytes of copies in {str(self._copies.folder)!r}, "
                f"and the files of {self.where!r} that are read at once have {at_once}, beside those that other "
                f"processes read: set it to {2 * at_once / 2**30:.3g} or more"
            )

    def _fetch(self, file: int, name: str, size: int) -> None:
        jobs = [
            self._ranges.submit(self._fetch_range, file, name, start, min(RANGE, size - start))
            for start in range(0, size, RANGE)
        ]
        try:
            for job in jobs:
                job.result()
        finally:
            for job in jobs:
                job.cancel()
            wait(jobs)  # The file must not be closed under one that is still writing.

    def _fetch_range(self, file: int, name: str, start: int, length: int) -> None:
        with self._saying_what_failed(name):
            data = memoryview(
                optional("obstore", extra="store").get_range(self._remote, name, start=start, length=length)
            )
        if len(data) != length:
            raise UserError(
                f"the file {self._address(name)!r} is damaged: {len(data)} bytes came where {length} were asked for; "
                "take an undamaged copy of the store"
            )
        with self._copies.saying_what_failed():
            while data:
                written = os.pwrite(file, data, start)
                data, start = data[written:], start + written

    def _object(self, name: str) -> _Object:
        """Asked for once; what changes later in the object store is another store."""
        if name not in self._known:
            with self._saying_what_failed(name):
                found = optional("obstore", extra="store").head(self._remote, name)
            changed = round(found["last_modified"].timestamp())
            self._known[name] = _Object(found["size"], changed, found["e_tag"] or f"{changed} {found['size']}")
        return self._known[name]

    def _connected(self, patience: timedelta) -> Any:
        unsafe = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS[self._scheme])
        with self._saying_what_failed():
            return optional("obstore.store", extra="store").from_url(
                self.where,
                client_options={
                    "connect_timeout": "10s",
                    "read_timeout": "30s",
                    "timeout": "10min",
                    "allow_http": unsafe,
                },
                retry_config={
                    "max_retries": 10_000,  # Their time is the bound: the pauses are random, and many are short.
                    "retry_timeout": patience,
                    "backoff": {"init_backoff": patience / 1000, "max_backoff": patience / 8, "base": 3},
                },
            )

    @contextmanager
    def _saying_what_failed(self, name: str = "") -> Iterator[None]:
        """Turn what the client says into one sentence."""
        try:
            yield
        except FileNotFoundError:
            if name == FILE:
                raise UserError(
                    f"{self.where!r} is not a store: there is no such bucket, or no {FILE} there; check the address, "
                    f"and {_ENDPOINTS[self._scheme][0]} in the environment"
                ) from None
            raise UserError(
                f"the file {self._address(name)!r} is missing: take a whole copy of the store, or collect it again"
            ) from None
        except (optional("obstore.exceptions", extra="store").BaseError, OSError, ValueError) as error:
            raise UserError(
                f"{self._address(name)!r} cannot be read: {_reason(error)}; check the address, the network and the "
                f"credentials in the environment ({_CREDENTIALS[self._scheme]})"
            ) from None

    def _address(self, name: str) -> str:
        return f"{self.where}/{name}".rstrip("/")


def _reason(error: Exception) -> str:
    """The client's first line, and the innermost cause of those below it."""
    first, *below = str(error).splitlines() or [type(error).__name__]
    causes = re.findall(r'(?:message|error): "([^"]+)"', "\n".join(below))
    return " ".join(first.split()) + (f" ({causes[-1]})" if causes else "")


class _Held:
    """A file that is open and locked, until nobody refers to this any more."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self._file)  # Bound here, as `os` may be gone when the process ends.


class _Copies:
    """Copies of files in a folder, those of all stores together of at most `limit` bytes.

    Each file is its own lock. Who fetches one, or was just given it, holds it; nobody removes what is held, and what
    was left behind by a process that died is held by none. Room is made and reserved under the lock of the folder. A
    copy has the time of its object as time of change, which with its size tells whether it is whole and of now, and its
    last use as time of access.
    """

    def __init__(self, folder: Path, limit: int, store: str, patience: timedelta) -> None:
        self.folder, self.limit = folder, limit
        self._store, self._patience = folder / store, patience

    def place(self, name: str) -> Path:
        """Where the copy of a file is."""
        return self._store / name

    def _unfinished(self, name: str) -> Path:
        place = self.place(name)
        return place.with_name(f".{place.name}.tmp")

    def found(self, name: str, wanted: _Object) -> _Held | None:
        """The copy of a file, or None if there is none that is whole; one that is not is removed."""
        place, changed = self.place(name), wanted.changed * 10**9
        with self.saying_what_failed():
            file = _locked(place, os.O_RDONLY, fcntl.LOCK_SH)
            if file is None:
                return None
            held, found = _Held(file), os.fstat(file)
            if (found.st_size, found.st_mtime_ns) != (wanted.size, changed):
                place.unlink(missing_ok=True)
                return None
            os.utime(file, ns=(time.time_ns(), changed))
            return held

    @contextmanager
    def begun(self, name: str) -> Iterator[int | None]:
        """An empty file to fetch into; None while another thread or process fetches the same.

        Nobody waits for that lock: once the file is finished, who was given it holds the same lock for long.
        """
        place = self._unfinished(name)
        with self.saying_what_failed():
            place.parent.mkdir(parents=True, exist_ok=True)
            file = _locked(place, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file is None:
            yield None
            return
        try:
            with self.saying_what_failed():
                os.ftruncate(file, 0)
            yield file
        finally:
            if _is_at(file, place):  # Else it was finished, and what is there now is another process's.
                place.unlink()
            os.close(file)

    def finish(self, file: int, name: str, wanted: _Object) -> None:
        """What was fetched is whole; renamed under the lock, so that it is counted once."""
        with self.saying_what_failed(), self._counting():
            os.utime(file, ns=(time.time_ns(), wanted.changed * 10**9))
            os.rename(self._unfinished(name), self.place(name))

    def make_room(self, file: int, size: int, needed: Collection[str], *, possible: bool) -> bool:
        """Give an empty file its size, once older copies other than `needed` have made room for it.

        What others hold is waited for; False if there is no room then, or at once where it is not `possible`.
        """
        kept = {place for name in needed for place in (self.place(name), self._unfinished(name))}
        end = time.monotonic() + self._patience.total_seconds()
        while possible:
            with self.saying_what_failed(), self._counting():
                if self._evict(size, kept):
                    os.ftruncate(file, size)
                    return True
            if time.monotonic() > end:
                break
            time.sleep(POLL.total_seconds())
        return False

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Hold the lock of the folder, which is never held for long."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _evict(self, size: int, kept: set[Path]) -> bool:
        """Remove what was used least recently until `size` more bytes fit; whether they do."""
        files = sorted(self._all(), key=lambda item: item[1].st_atime_ns)
        used = sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if used + size <= self.limit:
                break
            if path not in kept and _removed(path):
                used -= stat.st_size
        return used + size <= self.limit

    def _all(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every copy, whole or begun, of any store; nothing else that may be in the folder."""
        for store in self.folder.iterdir():
            if re.fullmatch("panscope-[0-9a-f]{32}", store.name):
                for path in store.rglob("*"):
                    try:
                        stat = path.lstat()
                    except FileNotFoundError:
                        continue  # Finished or removed by another process since it was listed.
                    if not path.is_dir():
                        yield path, stat

    @contextmanager
    def saying_what_failed(self) -> Iterator[None]:
        """Turn what the system says of a full disk or a refused folder into one sentence."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk is full; make room, or set activations.cache_gib lower" if full else error.strerror or error
            raise UserError(
                f"the folder of copies {str(self.folder)!r} cannot be used: {why}; or choose another activations.cache"
            ) from None


def _locked(path: Path, flags: int, how: int) -> int | None:
    """The file at `path`, opened and locked; None if it is not there any more, or is held and `how` is not to wait."""
    try:
        file = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, how)
        if _is_at(file, path):
            return file
    except BlockingIOError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file has not been removed or renamed."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Remove a file unless it is held; whether that was done."""
    file = _locked(path, os.O_RDWR, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if file is None:
        return False
    try:
        path.unlink()
    finally:
        os.close(file)
    return True
