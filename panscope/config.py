"""Configuration as frozen values: pydantic models that read and write TOML, refuse unknown keys and have a stable hash.

Each package defines its own model beside the code that uses it; what they share is here. Nothing ever changes a
configuration: a derived value goes into a new one, which is what is saved.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import pydantic
import tomli_w
import xxhash

from panscope.types import UserError


class Config(pydantic.BaseModel):
    """The base of every configuration: frozen, strict about keys, documented field by field."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def read(cls, fields: dict[str, Any], where: str) -> Self:
        """Check `fields` and return the configuration; raises UserError naming `where` and the first bad field."""
        try:
            return cls.model_validate(fields)
        except pydantic.ValidationError as error:
            raise UserError(_sentence(error, where, cls)) from None

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed."""
        return type(self).read(self.model_dump() | changes, type(self).__name__)

    def fingerprint(self) -> str:
        """A hash of every value, the same in every process and on every machine: 16 hex digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return xxhash.xxh3_64_hexdigest(text.encode())


def _sentence(error: pydantic.ValidationError, where: str, model: type[Config]) -> str:
    """The first problem of a pydantic error as one sentence in our words."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_key(place, where, _fields_at(model, first["loc"][:-1]))
    if first["type"] == "missing":
        return f"{where}: {place!r} is missing; set it"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if not place:
        return f"{where}: {message}"
    if isinstance(first["input"], dict):
        return f"{where}: {place}: {message}"
    return f"{where}: {place} is {first['input']!r}: {message}"


def _fields_at(model: type[Config], place: tuple[int | str, ...]) -> Iterable[str]:
    """The field names of the part of `model` at `place`."""
    for part in place:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, Config)):
            return ()
        model = inner
    return model.model_fields


def unknown_key(key: str, where: str, known: Iterable[str]) -> str:
    """The sentence for an unknown key, with the nearest known one or the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(key.split(".")[-1], names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"
    return f"{where}: the key {key!r} is unknown; {hint}"


def checked(kind: Any, value: Any, name: str) -> Any:
    """A value as one of a type, as a field of a Config would be; raises UserError, with its name, where it is none."""
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise UserError(f"{name} is {value!r}: {message[:1].lower()}{message[1:]}") from None


def expanded(path: Path | str) -> Path:
    """A path as a user writes it, with a home folder for its `~`; raises UserError where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        home = Path(path).parts[0]
        raise UserError(f"{str(path)!r}: this machine knows no home folder {home!r}; write the path in full") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises UserError if it is missing or not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"the file {str(path)!r} does not exist; give the path of a suite file") from None
    except IsADirectoryError:
        raise UserError(f"{str(path)!r} is a folder; give the path of a suite file") from None
    except OSError as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the file {str(path)!r} is not TOML: {error}") from None


def write_toml(tables: dict[str, Any]) -> str:
    """TOML text of nested tables; a None is left out, since TOML has no such value."""
    return tomli_w.dumps(_without_none(tables))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
