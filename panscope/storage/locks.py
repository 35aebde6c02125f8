"""Exclusive access to a folder, by a lock that the operating system releases when its owner ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from panscope.storage.atomic import writing
from panscope.types import UserError

LOCK = ".lock"
"""The name of the lock file."""


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Lock the folder for this process; if another process has locked it, `wait` or raise UserError.

    The operating system releases the lock when its owner ends, for whatever reason.
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
