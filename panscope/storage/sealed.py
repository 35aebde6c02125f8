"""JSON and TOML files that include a checksum of their content, so that damage raises an error."""

import json
import math
from pathlib import Path
from typing import Any

import xxhash

from panscope.config import read_toml, write_toml
from panscope.storage.atomic import UNDAMAGED_COPY, reading, write_text
from panscope.types import UserError

_SEAL = "seal"


_TOML_SEAL = "# xxh3 {} of all lines below; to change this file on purpose, delete this line\n"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN and infinity become null, as JSON has neither."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def read_json(path: Path, advice: str = UNDAMAGED_COPY) -> Any:
    """The value of a JSON file; raises UserError, ending with `advice`, if it is missing or damaged."""
    with reading(path, advice):
        raw = path.read_bytes()
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the file {str(path)!r} is damaged and is not JSON: {error}; {advice}") from None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file with a checksum of its content, for `read_sealed`."""
    write_json(path, sealed(value))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with a checksum of its content, for `unsealed`."""
    value = finite(value)
    assert _SEAL not in value
    return value | {_SEAL: _seal(value)}


def read_sealed(path: Path, advice: str = UNDAMAGED_COPY) -> dict[str, Any]:
    """The value from `write_sealed`; raises UserError, ending with `advice`, if the file is missing or was changed."""
    return unsealed(path, read_json(path, advice), advice)


def unsealed(path: Path, value: Any, advice: str = UNDAMAGED_COPY) -> dict[str, Any]:
    """The `value` read from the file `path` without its checksum; raises UserError, ending with `advice`, if wrong."""
    if not isinstance(value, dict) or _SEAL not in value:
        raise UserError(
            f"the file {str(path)!r} has no checksum of its content: it is damaged, or from an older version; {advice}"
        )
    content = {key: item for key, item in value.items() if key != _SEAL}
    if value[_SEAL] != _seal(content):
        raise UserError(f"the file {str(path)!r} is damaged: it does not match its own checksum; {advice}")
    return content


def write_sealed_toml(path: Path, tables: dict[str, Any]) -> None:
    """Write a TOML file whose first line is a comment with the checksum of all other lines."""
    text = f"\n{write_toml(tables)}"
    write_text(path, _TOML_SEAL.format(xxhash.xxh3_64_hexdigest(text.encode())) + text)


def read_sealed_toml(path: Path) -> dict[str, Any]:
    """The tables from `write_sealed_toml`; raises UserError if the file was changed but its first line was kept.

    A file that does not begin with a comment is not checked: users delete the first line to make a change on purpose.
    """
    tables = read_toml(path)
    with reading(path):
        first, _, rest = path.read_bytes().partition(b"\n")
    if first.startswith(b"#") and first + b"\n" != _TOML_SEAL.format(xxhash.xxh3_64_hexdigest(rest)).encode():
        raise UserError(
            f"the file {str(path)!r} was changed since the run began: it does not match the checksum in its first "
            "line; put it back as it was, or delete that line to keep the change"
        )
    return tables


def _seal(value: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
