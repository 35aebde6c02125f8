"""The identity of a text, which distinguishes texts of the same name: size and checksum of a file, or a revision.

A store can only be resumed or extended with exactly the same text.
"""

from functools import lru_cache
from pathlib import Path

import xxhash

from panscope import builtin
from panscope.config import expanded
from panscope.data.documents import DEMO_TEXT, DataConfig
from panscope.storage.file_version import FileVersion
from panscope.types import UserError

_PIECE = 1 << 22


def text_identity(config: DataConfig) -> tuple[str, ...]:
    """The identity of each text: `stories.jsonl 1234 bytes xxh3 0123456789abcdef`, or a dataset with its revision.

    Reads every local file entirely. Raises UserError if one cannot be read.
    """
    return tuple(_with_checksum(name, _name_and_size(name, config)) for name in config.text)


def text_sizes(config: DataConfig) -> tuple[str, ...]:
    """The identities without checksums, so that no file is read."""
    return tuple(_name_and_size(name, config) for name in config.text)


def _path(name: str) -> Path:
    return builtin.DEMO_TEXT if name == DEMO_TEXT else expanded(name)


def _name_and_size(name: str, config: DataConfig) -> str:
    path = _path(name)
    if path.is_file():
        return f"{path.name} {path.stat().st_size} bytes"
    return " ".join(part for part in (name, config.subset, config.split, config.revision) if part)


def _with_checksum(name: str, known: str) -> str:
    return f"{known} xxh3 {_checksum(FileVersion.of(_path(name)))}" if _path(name).is_file() else known


@lru_cache(maxsize=64)
def _checksum(version: FileVersion) -> str:
    """The checksum of a file, cached per version of the file."""
    digest, path = xxhash.xxh3_64(), version.path
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"data.text: {str(path)!r} cannot be read ({error.strerror}); make it readable") from None
    return digest.hexdigest()
