"""The identity of a text, which distinguishes texts of the same name: size and checksum of a file, or a revision.

A store can only be resumed or extended with exactly the same text.
"""

from pathlib import Path

from panscope import builtin
from panscope.config import expanded
from panscope.data.documents import DEMO_TEXT, DataConfig
from panscope.storage.atomic import checksum
from panscope.storage.file_version import FileVersion
from panscope.storage.user_cache import cached_checksum


def text_identity(config: DataConfig) -> tuple[str, ...]:
    """The identity of each text: `stories.jsonl 1234 bytes xxh3 0123456789abcdef`, or a dataset with its revision.

    Reads every local file entirely, once: checksums are cached by the files' versions. Raises UserError if one cannot
    be read.
    """
    return tuple(_with_checksum(name, _name_and_size(name, config)) for name in config.text)


def _path(name: str) -> Path:
    return builtin.DEMO_TEXT if name == DEMO_TEXT else expanded(name)


def _name_and_size(name: str, config: DataConfig) -> str:
    path = _path(name)
    if path.is_file():
        return f"{path.name} {path.stat().st_size} bytes"
    return " ".join(part for part in (name, config.subset, config.split, config.revision) if part)


def _with_checksum(name: str, known: str) -> str:
    path = _path(name)
    if not path.is_file():
        return known
    return f"{known} xxh3 {cached_checksum('text', [FileVersion.of(path)], lambda: _checksum(path))}"


def _checksum(path: Path) -> str:
    return checksum(path, advice="make it readable")
