"""Markdown of what files say: tables, lists, and strangers' words without what Markdown and HTML give a meaning to."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_MOST = 8


def in_order(values: Iterable[Any]) -> list[Any]:
    """Each once, as they first come, without None."""
    return [value for value in dict.fromkeys(values) if value is not None]


def plain(value: Any) -> str:
    """What a stranger's file may have said, on one line and as text."""
    return " ".join(re.sub(r"[`|<>\[\]]", " ", str(value)).split())


def code(values: Iterable[Any]) -> str:
    """All of them as code, or a dash."""
    return ", ".join(f"`{plain(value)}`" for value in values) or "-"


def some(values: Sequence[Any]) -> str:
    """The first few of them as code, and how many more there are."""
    more = f", and {len(values) - _MOST:,} more" if len(values) > _MOST else ""
    return code(values[:_MOST]) + more


def joined(parts: Sequence[str]) -> str:
    """As a sentence lists them."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; `|` in a cell is escaped."""
    head = list(heading)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
