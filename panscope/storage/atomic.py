"""Atomic file writes: to a temporary name in the same folder, flushed to disk, then renamed.

A reader never sees a partial file, and a crash never loses the previous version. Errors of the operating system become
UserErrors that name the file.
"""

import contextlib
import errno
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors
import xxhash

from panscope.types import UserError

UNDAMAGED_COPY = "take an undamaged copy"
"""The default advice for a damaged file."""


class WriteError(UserError, OSError):
    """A file that cannot be written, with the reason; `errno` is that of the operating system."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.reason: str = error.reason if isinstance(error, WriteError) else error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some disk space" if full else "make it writable, or choose another path"
        super().__init__(f"{str(path)!r} cannot be written: {self.reason}; earlier files are unchanged: {advice}")
        self.errno = error.errno


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn system errors of a write into a WriteError that names `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error
    except safetensors.SafetensorError as error:
        raise WriteError(path, _system_error(error)) from error


def _system_error(error: safetensors.SafetensorError) -> OSError:
    """The underlying system error, which safetensors reports only in the text of its message."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


@contextlib.contextmanager
def reading(path: Path, advice: str = UNDAMAGED_COPY) -> Iterator[None]:
    """Turn system errors of a read into a UserError that names `path` and ends with `advice`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"the file {str(path)!r} is missing; {advice}") from None
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror or error}; {advice}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it is flushed to disk and renamed to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush_to_disk(temporary)
            os.replace(temporary, path)
            flush_to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it is flushed to disk and renamed to `path`, which must not exist.

    If a write fails, the temporary folder is removed, as it may be what fills the disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            yield temporary
            flush_to_disk(temporary)
            os.rename(temporary, path)
            flush_to_disk(path.parent)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def flush_to_disk(path: Path) -> None:
    """Flush a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def checksum(path: Path, size: int | None = None, *, advice: str = UNDAMAGED_COPY) -> str:
    """xxh3 (64 bit) of a file's bytes, or of the first `size` of them: 16 hex digits.

    Raises UserError, ending with `advice`, if the file cannot be read.
    """
    digest, left = xxhash.xxh3_64(), math.inf if size is None else size
    with reading(path, advice), path.open("rb") as file:
        while block := file.read(int(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
