"""Conversations of several turns, in WildChat's format: a list of turns with a `role` and a `content`.

What a conversation must be for a chat of queries and responses (docs/transfer.md): turns of the user and the assistant,
alternating, the user first. It ends before the first turn that is empty or out of order. One with a turn of the system
or a tool is left out, as its prefix is unknown and the turns around it depend on it. Anything else in place of a list
of turns is an error, since the column is then a different one.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from panscope.data.files import ColumnKind, it_has, open_rows, replace_lone_surrogates
from panscope.types import UserError

ROLES = ("user", "assistant")
"""The roles of queries and of responses."""
_LEFT_OUT = ("system", "developer", "tool", "function")
"""Roles whose conversations are left out."""


class ConversationFile:
    """A .jsonl or .parquet file with one conversation per row."""

    def __init__(self, path: Path, column: str):
        """Raises UserError as `open_rows` does."""
        self._rows = open_rows(path, column, kind=CONVERSATIONS)
        self.units = self._rows.units

    def turns(self, index: int) -> tuple[str, ...]:
        """Query, response, query ... of conversation `index`; see `turns_of`."""
        return turns_of(self._rows.value(index), self._rows.place(index))

    def read(self, index: int) -> str:
        """The first query; empty if the conversation is left out."""
        return next(iter(self.turns(index)), "")


def turns_of(conversation: Any, place: str) -> tuple[str, ...]:
    """Query, response, query ...; empty if the conversation has no query or is left out, or is null.

    Raises UserError, naming `place`, for anything but a list of turns with known roles and text.
    """
    if conversation is None:
        return ()
    if not isinstance(conversation, list):
        kind = type(conversation).__name__
        raise UserError(
            f"data.column: {place} has {kind} in place of a conversation; expected a list of turns, each with a role "
            "and a content: choose another column"
        )
    turns = [_turn(turn, f"{place}, turn {number}") for number, turn in enumerate(conversation, 1)]
    if any(role in _LEFT_OUT for role, _ in turns):
        return ()
    kept: list[str] = []
    for (role, content), expected in zip(turns, _alternating(len(turns)), strict=True):
        if role != expected or not content.strip():
            break
        kept.append(content)
    return tuple(kept)


def _alternating(count: int) -> list[str]:
    return [ROLES[number % 2] for number in range(count)]


def _turn(turn: Any, place: str) -> tuple[str, str]:
    """Role and content of a turn."""
    if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
        found = it_has(turn) or f" (it is {type(turn).__name__})"
        raise UserError(f"data.column: {place} has no role and content{found}; expected both in every turn")
    role, content = turn["role"], turn["content"]
    if role not in (*ROLES, *_LEFT_OUT):
        raise UserError(f"data.column: {place} has the role {role!r}; expected one of {', '.join(ROLES)}")
    if not isinstance(content, str | None):
        raise UserError(f"data.column: {place} has {type(content).__name__} as its content; expected text")
    return role, replace_lone_surrogates(content or "")


def _is_list_of_turns(kind: pa.DataType) -> bool:
    """Whether a type of Parquet is a list of structs with a role and a content."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    turn = kind.value_type
    return pa.types.is_struct(turn) and {"role", "content"} <= {turn.field(i).name for i in range(turn.num_fields)}


CONVERSATIONS = ColumnKind("conversations (lists of turns, each with a role and a content)", _is_list_of_turns)
