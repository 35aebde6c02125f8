"""What a source of documents is, and which of its documents are held out for evaluation.

Whether a document is held out depends on a hash of its text alone: copies of one text are on the same side, and the
split is the same on every machine and in every order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import xxhash

Part = Literal["training", "held_out", "all"]
"""Which documents a stream gives: those to train on, those kept for evaluation, or both."""


@dataclass(frozen=True)
class Document:
    """One text and its number: its place in the source, from 0."""

    number: int
    text: str
    """Of a chat, the user's query: what decides whether it is held out, so that all responses to it are on one side."""
    response: str = ""
    """Of a chat, what the model responded; else empty."""


class Walk(Iterator[Document], Protocol):
    """Every document of a source once, in the order of one seed and epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Where the walk stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken, in a walk of the same source, seed and epoch."""
        ...


class Documents(Protocol):
    """A source of documents."""

    @property
    def count(self) -> int | None:
        """How many documents there are, blank ones too; None where that is not known before reading them all."""
        ...

    def walk(self, seed: int, epoch: int) -> Walk:
        """Every document once; the order is a function of `seed` and `epoch`."""
        ...


def is_in_part(text: str, part: Part, held_out: float) -> bool:
    """Whether `text` belongs to `part` when the share `held_out` of all documents is held out. O(length of text)."""
    if part == "all":
        return True
    is_held_out = xxhash.xxh3_64_intdigest(text.encode()) < held_out * 2**64
    return is_held_out == (part == "held_out")
