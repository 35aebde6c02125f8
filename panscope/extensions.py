"""Architectures, metrics and formats of other packages, found by Python's entry points.

A distribution offers an object under a name in the groups `panscope.architectures`, `panscope.metrics` or
`panscope.formats` (docs/extending.md). They are looked up only when a name is asked for that Panscope does not know, so
nothing is scanned or imported at start, and a built-in name can never be taken.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from panscope.types import UserError

Group = Literal["architectures", "metrics", "formats"]


@cache
def extension(group: Group, name: str) -> Any | None:
    """What an installed distribution offers under `name`; None where none does.

    Raises UserError where two do, and where it cannot be imported.
    """
    found = list(entry_points(group=f"panscope.{group}", name=name))
    if not found:
        return None
    if len(found) > 1:
        both = " and ".join(sorted(_distribution(one) for one in found))
        raise UserError(f"{name!r} is in panscope.{group} of {both}: uninstall one of them")
    try:
        return found[0].load()
    except Exception as error:  # any error of another package's module
        raise UserError(
            f"{name!r} of {_distribution(found[0])} ({found[0].value}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error


def wrong_kind(group: Group, name: str, expected: str) -> UserError:
    """The error for an object that is not what its group is for."""
    (found,) = entry_points(group=f"panscope.{group}", name=name)
    return UserError(f"{name!r} of {_distribution(found)} ({found.value}) is not {expected}: report it to its authors")


def names_of(group: Group) -> list[str]:
    """The names that installed distributions offer; nothing is imported."""
    return sorted({one.name for one in entry_points(group=f"panscope.{group}")})


def _distribution(found: EntryPoint) -> str:
    return "an unnamed distribution" if found.dist is None else f"the distribution {found.dist.name!r}"
