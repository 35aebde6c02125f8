"""The files of a store in an object store (S3, Google Cloud Storage), through a local cache of bounded size.

A file is downloaded entirely before it is read, in several ranges at once. The cache evicts the least recently used
files. An evicted file that is still mapped stays readable, and its disk space is freed when it is unmapped. Several
processes may share the cache folder and use the files that another one has downloaded.
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
"""Number of bytes per request."""
RANGES_AT_ONCE = 8
FILES_AT_ONCE = 4
PATIENCE = timedelta(minutes=2)
"""How long a failing request is retried, and how long to wait for space in the cache."""
FIRST_PATIENCE = timedelta(seconds=10)
"""Maximum retry time of the first request, at which a wrong address is more likely than a temporary fault."""
POLL = timedelta(milliseconds=20)
"""Interval of checks for free space, or for a file that another process is downloading."""
_ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"), "gs": ("GOOGLE_BASE_URL",)}
"""Environment variables with the address of another service, by scheme; the usual one first."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}
SCHEMES = tuple(_ENDPOINTS)


@dataclass(frozen=True)
class _ObjectInfo:
    """Metadata of a file in the object store."""

    size: int
    modified: int
    """Time of modification in seconds."""
    tag: str
    """Identifies the version of the file."""


class RemoteFiles:
    """Files below an address such as s3://bucket/prefix."""

    is_persistent = False

    def __init__(self, url: str, cache: Path, cache_bytes: int, *, patience: timedelta = PATIENCE) -> None:
        """Files are cached in the folder `cache`; raises UserError if the store cannot be reached."""
        self.where = url.rstrip("/")
        self._scheme = url.partition("://")[0]
        self._known: dict[str, _ObjectInfo] = {}
        self._remote = self._connect(min(patience, FIRST_PATIENCE))
        manifest = self._object_info(FILE)
        self._remote = self._connect(patience)
        version = xxhash.xxh3_128_hexdigest(f"{self.where}\n{manifest.tag}".encode())
        self._cache = _Cache(cache, cache_bytes, f"panscope-{version}", patience)
        self._needed: tuple[str, ...] = ()
        self._ahead: dict[str, Future[None]] = {}
        self._files = ThreadPoolExecutor(FILES_AT_ONCE, "panscope-files")
        self._ranges = ThreadPoolExecutor(RANGES_AT_ONCE, "panscope-ranges")
        self._thread_local = threading.local()

    def path(self, name: str) -> Path:
        """The cached file, downloaded if necessary; it is not evicted before this thread requests another file.

        Raises UserError if there is no such file, it cannot be downloaded, or there is no space for it.
        """
        self._thread_local.held = None
        job = self._ahead.pop(name, None)
        if job is not None and not job.cancel():
            job.result()
        self._thread_local.held = self._held_file(name)
        return self._cache.path(name)

    def fetch_ahead(self, names: Sequence[str]) -> None:
        """Start to download these files, which are needed at the same time, and cancel those of the previous call."""
        self._thread_local.held = None
        for job in self._ahead.values():
            job.cancel()
        self._needed = tuple(dict.fromkeys(names))
        self._ahead = {name: self._files.submit(self._fetch_ahead, name) for name in self._needed}

    def _fetch_ahead(self, name: str) -> None:
        self._held_file(name)

    def _held_file(self, name: str) -> "_HeldFile":
        """A lock on the complete cached file, which is downloaded if it is missing or outdated."""
        wanted = self._object_info(name)
        while True:
            held = self._cache.lookup(name, wanted)
            if held is not None:
                return held
            with self._cache.open_unfinished(name) as file:
                if file is None:
                    time.sleep(POLL.total_seconds())
                elif not self._cache.lookup(name, wanted):  # Another process may have finished it in the meantime.
                    self._reserve(file, name, wanted.size)
                    self._fetch(file, name, wanted.size)
                    self._cache.finish(file, name, wanted)

    def _reserve(self, file: int, name: str, size: int) -> None:
        """Reserve the disk space of a file; raises UserError if the files needed at once exceed the limit."""
        needed = dict.fromkeys([*self._needed, name])
        at_once = sum(self._known[n].size for n in needed if n in self._known)
        if not self._cache.reserve(file, size, needed, possible=at_once <= self._cache.limit):
            raise UserError(
                f"activations.cache_gib allows {self._cache.limit} bytes in the cache {str(self._cache.folder)!r}, "
                f"and the files of {self.where!r} that are read at once have {at_once}, in addition to those that "
                f"other processes read: set it to {2 * at_once / 2**30:.3g} or more"
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
            wait(jobs)  # The file must not be closed while a job is writing to it.

    def _fetch_range(self, file: int, name: str, start: int, length: int) -> None:
        with self._translating_client_errors(name):
            data = memoryview(
                optional("obstore", extra="store").get_range(self._remote, name, start=start, length=length)
            )
        if len(data) != length:
            raise UserError(
                f"the file {self._address(name)!r} is damaged: {len(data)} bytes were received and {length} were "
                "requested; take an undamaged copy of the store"
            )
        with self._cache.translating_os_errors():
            while data:
                written = os.pwrite(file, data, start)
                data, start = data[written:], start + written

    def _object_info(self, name: str) -> _ObjectInfo:
        """Metadata of a file, requested once: a store must not change while it is read."""
        if name not in self._known:
            with self._translating_client_errors(name):
                metadata = optional("obstore", extra="store").head(self._remote, name)
            modified = round(metadata["last_modified"].timestamp())
            self._known[name] = _ObjectInfo(
                metadata["size"], modified, metadata["e_tag"] or f"{modified} {metadata['size']}"
            )
        return self._known[name]

    def _connect(self, patience: timedelta) -> Any:
        unsafe = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS[self._scheme])
        with self._translating_client_errors():
            return optional("obstore.store", extra="store").from_url(
                self.where,
                client_options={
                    "connect_timeout": "10s",
                    "read_timeout": "30s",
                    "timeout": "10min",
                    "allow_http": unsafe,
                },
                retry_config={
                    "max_retries": 10_000,  # `retry_timeout` is the limit; many of the random pauses are short.
                    "retry_timeout": patience,
                    "backoff": {"init_backoff": patience / 1000, "max_backoff": patience / 8, "base": 3},
                },
            )

    @contextmanager
    def _translating_client_errors(self, name: str = "") -> Iterator[None]:
        """Translate the client's exceptions into a UserError."""
        try:
            yield
        except FileNotFoundError:
            if name == FILE:
                raise UserError(
                    f"{self.where!r} is not a store: there is no such bucket, or no {FILE} there; check the address, "
                    f"and {_ENDPOINTS[self._scheme][0]} in the environment"
                ) from None
            raise UserError(
                f"the file {self._address(name)!r} is missing: take a complete copy of the store, or collect it again"
            ) from None
        except (optional("obstore.exceptions", extra="store").BaseError, OSError, ValueError) as error:
            raise UserError(
                f"{self._address(name)!r} cannot be read: {_reason(error)}; check the address, the network and the "
                f"credentials in the environment ({_CREDENTIALS[self._scheme]})"
            ) from None

    def _address(self, name: str) -> str:
        return f"{self.where}/{name}".rstrip("/")


def _reason(error: Exception) -> str:
    """The first line of the client's error, and the innermost cause from the lines below it."""
    first, *below = str(error).splitlines() or [type(error).__name__]
    causes = re.findall(r'(?:message|error): "([^"]+)"', "\n".join(below))
    return " ".join(first.split()) + (f" ({causes[-1]})" if causes else "")


class _HeldFile:
    """An open and locked file, which is closed when this object is garbage-collected."""

    def __init__(self, file: int) -> None:
        self._file = file

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self._file)  # A default argument, since `os` may be gone at interpreter shutdown.


class _Cache:
    """Cached files of all stores in a folder, at most `limit` bytes in total.

    Each file is its own lock: it is held by the process that downloads it or is about to open it. A held file is not
    evicted; a process that dies releases its locks. Space is freed and reserved under the lock of the folder. The
    modification time of a file is that of its object, which shows together with the size whether it is complete and
    current; the access time is that of its last use.
    """

    def __init__(self, folder: Path, limit: int, store: str, patience: timedelta) -> None:
        self.folder, self.limit = folder, limit
        self._store, self._patience = folder / store, patience

    def path(self, name: str) -> Path:
        """The path of a cached file."""
        return self._store / name

    def _unfinished(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(f".{path.name}.tmp")

    def lookup(self, name: str, wanted: _ObjectInfo) -> _HeldFile | None:
        """A lock on a cached file; None if there is no complete and current one. An outdated one is removed."""
        path, modified = self.path(name), wanted.modified * 10**9
        with self.translating_os_errors():
            file = _locked(path, os.O_RDONLY, fcntl.LOCK_SH)
            if file is None:
                return None
            held, stat = _HeldFile(file), os.fstat(file)
            if (stat.st_size, stat.st_mtime_ns) != (wanted.size, modified):
                path.unlink(missing_ok=True)
                return None
            os.utime(file, ns=(time.time_ns(), modified))
            return held

    @contextmanager
    def open_unfinished(self, name: str) -> Iterator[int | None]:
        """An empty file to download into; None while another thread or process downloads the same file.

        Does not wait for the file's lock, since readers of the finished file may hold it for a long time.
        """
        path = self._unfinished(name)
        with self.translating_os_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file is None:
            yield None
            return
        try:
            with self.translating_os_errors():
                os.ftruncate(file, 0)
            yield file
        finally:
            if _is_at(file, path):  # Otherwise it was finished, and the path may have another process's file.
                path.unlink()
            os.close(file)

    def finish(self, file: int, name: str, wanted: _ObjectInfo) -> None:
        """Rename a completely downloaded file; under the folder's lock, so that its size is counted exactly once."""
        with self.translating_os_errors(), self._locked_folder():
            os.utime(file, ns=(time.time_ns(), wanted.modified * 10**9))
            os.rename(self._unfinished(name), self.path(name))

    def reserve(self, file: int, size: int, needed: Collection[str], *, possible: bool) -> bool:
        """Extend an empty file to its size after evicting older files except those `needed`; returns whether it fits.

        Waits for files held by others; returns False after a timeout, or immediately if it is not `possible`.
        """
        kept = {path for name in needed for path in (self.path(name), self._unfinished(name))}
        end = time.monotonic() + self._patience.total_seconds()
        while possible:
            with self.translating_os_errors(), self._locked_folder():
                if self._evict(size, kept):
                    os.ftruncate(file, size)
                    return True
            if time.monotonic() > end:
                break
            time.sleep(POLL.total_seconds())
        return False

    @contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Hold the lock of the folder, which must be brief."""
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _evict(self, size: int, kept: set[Path]) -> bool:
        """Evict the least recently used files until `size` more bytes fit; returns whether they do."""
        files = sorted(self._all_copies(), key=lambda item: item[1].st_atime_ns)
        used = sum(stat.st_size for _, stat in files)
        for path, stat in files:
            if used + size <= self.limit:
                break
            if path not in kept and _removed(path):
                used -= stat.st_size
        return used + size <= self.limit

    def _all_copies(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Every cached file of any store, complete or not; other files in the folder are not touched."""
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
    def translating_os_errors(self) -> Iterator[None]:
        """Translate OSErrors in the cache folder into a UserError."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = (
                "the disk is full; free some space or lower activations.cache_gib" if full else error.strerror or error
            )
            raise UserError(
                f"the cache folder {str(self.folder)!r} cannot be used: {why}; or choose another activations.cache"
            ) from None


def _locked(path: Path, flags: int, how: int) -> int | None:
    """Open and lock the file at `path`; None if it no longer exists, or is locked and `how` has LOCK_NB."""
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
    """Whether `path` is still the path of an open file, which may have been removed or renamed."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Remove a file unless it is locked; returns whether it was removed."""
    file = _locked(path, os.O_RDWR, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if file is None:
        return False
    try:
        path.unlink()
    finally:
        os.close(file)
    return True
