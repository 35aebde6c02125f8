"""Detecting changes of a file without reading it, and a cache that reads a file again only after it has changed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class FileVersion:
    """The identity of a file's current content: versions compare unequal once the file has changed."""

    path: Path
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """When content or attributes last changed; unlike `modified_ns`, programs cannot set it back."""

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        """The current version of the file; raises OSError if it does not exist."""
        found = path.stat()
        return cls(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class ReadOnce:
    """A cache of values read from files; a file is read again only if it has changed."""

    def __init__(self) -> None:
        self._values: dict[Path, tuple[FileVersion, object]] = {}

    def get(self, path: Path, read: Callable[[Path], T]) -> T:
        """The value of `read(path)` for the current version of the file; a missing file is passed to `read`."""
        if not path.is_file():
            return read(path)
        version = FileVersion.of(path)
        known = self._values.get(path)
        if known is None or known[0] != version:
            known = version, read(path)
            self._values[path] = known
        return known[1]  # pyright: ignore[reportReturnType]
