"""How optional flags look in --help: a plain word for the value, and the default where it is one."""

from typing import Any

import tyro

_UNSET = {"None", "", "''"}


def flag(metavar: str, *aliases: str) -> Any:
    """The annotation of an optional flag whose value is shown as `metavar`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=_default, aliases=aliases or None)


def _default(value: str) -> str:
    return "" if value in _UNSET else f"(default: {value})"
