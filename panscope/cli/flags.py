"""How optional flags look in --help: a plain word for the value, and no mention of the default None."""

from typing import Any

import tyro


def flag(metavar: str) -> Any:
    """The annotation of an optional flag whose value is shown as `metavar`."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")
