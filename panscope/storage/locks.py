"""One process at a time per folder, by a lock that the operating system frees when its owner ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from panscope.storage.atomic import writing
from panscope.types import UserError

LOCK = ".lock"
"""The file by which a process holds a folder."""


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process alone; raises UserError if another one holds it, unless it is to `wait`.

    The system lets go of the lock when its owner ends, however it ends.
    """
    lock = filelock.FileLock(folder / LOCK)
    with writing(folder / LOCK):
        try:
            lock.acquire(blocking=wait)
        except filelock.Timeout:
            raise UserError(
                f"{str(folder)!r} is in use by another process of panscope: wait until that has ended, or stop it"
            ) from None
    try:
        yield
    finally:
        lock.release()
