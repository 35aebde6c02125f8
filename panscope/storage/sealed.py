"""JSON and TOML files that carry a checksum of themselves, so that damage is an error and never a wrong number."""

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
    """Write a JSON file in one piece; NaN and infinity become null, as JSON has neither."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def read_json(path: Path, then: str = UNDAMAGED_COPY) -> Any:
    """The value of a JSON file; raises UserError, with what to do `then`, if it is missing or broken."""
    with reading(path, then):
        raw = path.read_bytes()
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the file {str(path)!r} is damaged and is not JSON: {error}; {then}") from None


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that carries a checksum of itself, for `read_sealed`."""
    value = finite(value)
    assert _SEAL not in value
    write_json(path, value | {_SEAL: _seal(value)})


def read_sealed(path: Path, then: str = UNDAMAGED_COPY) -> dict[str, Any]:
    """What `write_sealed` wrote; raises UserError, with what to do `then`, if it is missing or was changed."""
    return unsealed(path, read_json(path, then), then)


def unsealed(path: Path, value: Any, then: str = UNDAMAGED_COPY) -> dict[str, Any]:
    """The value of the sealed JSON file `path` without its seal; raises UserError, with what to do `then`."""
    if not isinstance(value, dict) or _SEAL not in value:
        raise UserError(
            f"the file {str(path)!r} carries no checksum of itself: it is damaged, or of an older version; {then}"
        )
    content = {key: item for key, item in value.items() if key != _SEAL}
    if value[_SEAL] != _seal(content):
        raise UserError(f"the file {str(path)!r} is damaged: it does not match its own checksum; {then}")
    return content


def write_sealed_toml(path: Path, tables: dict[str, Any]) -> None:
    """Write a TOML file whose first line, a comment, is a checksum of all the others."""
    text = f"\n{write_toml(tables)}"
    write_text(path, _TOML_SEAL.format(xxhash.xxh3_64_hexdigest(text.encode())) + text)


def read_sealed_toml(path: Path) -> dict[str, Any]:
    """The tables of what `write_sealed_toml` wrote; raises UserError if it was changed and its first line left there.

    A file that begins with no comment is taken as it is: deleting the first line means that the change is on purpose.
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
