"""Files written in one piece: under a temporary name in the same folder, flushed to disk, then renamed.

A reader never sees half a file and a crash loses nothing that was there before. What the operating system refuses to
read or write is reported in one sentence.
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
"""What to do about a damaged file, where nothing more specific helps."""


class WriteError(UserError, OSError):
    """What the system refused to write, and why; `errno` is the system's."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.reason: str = error.reason if isinstance(error, WriteError) else error.strerror or str(error)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        then = "make room there" if full else "make it writable, or choose another place"
        super().__init__(f"{str(path)!r} cannot be written: {self.reason}; what was saved before is untouched: {then}")
        self.errno = error.errno


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a refused write into one sentence that names `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error
    except safetensors.SafetensorError as error:
        raise WriteError(path, _system_error(error)) from error


def _system_error(error: safetensors.SafetensorError) -> OSError:
    """What the system said, which safetensors tells in words alone."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))


@contextlib.contextmanager
def reading(path: Path, then: str = UNDAMAGED_COPY) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into one sentence that ends with what to do `then`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"the file {str(path)!r} is missing; {then}") from None
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror or error}; {then}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving it is flushed to disk and takes the place of `path`."""
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
    """A temporary folder to fill; on leaving without an exception it is renamed to `path`, which must not exist.

    Where the system refuses a write, the temporary folder is removed, as it may be what fills the disk.
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
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one piece."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def checksum(path: Path, size: int | None = None) -> str:
    """xxh3 (64 bit) of a file's bytes, or of the first `size` of them: 16 hex digits."""
    digest, left = xxhash.xxh3_64(), math.inf if size is None else size
    with reading(path), path.open("rb") as file:
        while block := file.read(int(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
