"""What tells one state of a file from another without reading it, so that a file is read again only once it changed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class FileVersion:
    """A file as it is now: once it is changed, it compares as another."""

    path: Path
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        """The present version of the file; raises OSError if there is none."""
        found = path.stat()
        return cls(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class ReadOnce:
    """The values of files, each read again only where the file has changed since."""

    def __init__(self) -> None:
        self._values: dict[Path, tuple[FileVersion, object]] = {}

    def get(self, path: Path, read: Callable[[Path], T]) -> T:
        """What `read(path)` gave for this version of the file; a file that is missing is left to `read`."""
        if not path.is_file():
            return read(path)
        version = FileVersion.of(path)
        known = self._values.get(path)
        if known is None or known[0] != version:
            known = version, read(path)
            self._values[path] = known
        return known[1]  # pyright: ignore[reportReturnType]
