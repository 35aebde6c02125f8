"""The user's cache folder, and checksums of large files that are kept there between processes.

A file of gigabytes is read for its checksum once: the checksum is stored with the versions of the files that it was
computed from, and computed again after any of them has changed. A cache that cannot be read or written is no error.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xxhash

from panscope.storage.file_version import FileVersion
from panscope.storage.sealed import read_json, sealed, unsealed
from panscope.types import UserError

_SETTLED_NS = 2_000_000_000
"""Age from which on a file's times tell: one that is written twice within a tick of its clock keeps the same times."""

_in_memory: dict[tuple[str, tuple[FileVersion, ...]], str] = {}


def user_cache() -> Path:
    """Panscope's folder in the user's cache folder; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "panscope"


def cached_checksum(kind: str, versions: Sequence[FileVersion], compute: Callable[[], str]) -> str:
    """The checksum of files of these versions: from this process, from an earlier one, or from `compute()`.

    `kind` names how it is computed; checksums of different kinds are kept apart. Raises what `compute` raises.
    """
    key = kind, tuple(versions)
    if key not in _in_memory:
        _in_memory[key] = _read(*key) or _computed(*key, compute)
    return _in_memory[key]


def _computed(kind: str, versions: tuple[FileVersion, ...], compute: Callable[[], str]) -> str:
    checksum = compute()
    newest = max(max(version.modified_ns, version.changed_ns) for version in versions)
    if time.time_ns() - newest > _SETTLED_NS:
        _write(_place(kind, versions), {"versions": _plain(versions), "checksum": checksum})
    return checksum


def _read(kind: str, versions: tuple[FileVersion, ...]) -> str | None:
    """The checksum of an earlier process; None if there is none of these versions or it cannot be read."""
    path = _place(kind, versions)
    try:
        found = unsealed(path, read_json(path))
        return found["checksum"] if found["versions"] == _plain(versions) else None
    except (UserError, KeyError):
        return None


def _write(path: Path, value: dict[str, Any]) -> None:
    """Without a flush to disk: what a crash leaves of the file does not match its seal and is not used."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(sealed(value)), encoding="utf-8")
        os.replace(temporary, path)


def _place(kind: str, versions: tuple[FileVersion, ...]) -> Path:
    """One file for the same files in all their versions, so that the cache does not grow with every change."""
    paths = json.dumps([kind, *(str(version.path.absolute()) for version in versions)])
    return user_cache() / "checksums" / f"{xxhash.xxh3_64_hexdigest(paths.encode())}.json"


def _plain(versions: tuple[FileVersion, ...]) -> list[list[str | int]]:
    return [[str(v.path.absolute()), v.device, v.inode, v.size, v.modified_ns, v.changed_ns] for v in versions]
