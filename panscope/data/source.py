"""The interface of document sources, and the split of their documents into training and held-out parts.

Whether a document is held out depends only on a hash of its text. So duplicates are in the same part, and the split is
independent of the machine and the order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import xxhash

Part = Literal["training", "held_out", "all"]
"""The documents of a stream: those for training, those held out for evaluation, or both."""


@dataclass(frozen=True)
class Document:
    """A text and its number."""

    number: int
    """Index of the document in the source, from 0."""
    text: str
    """The text; for a chat, the user's first query. It determines the part: all responses to it are in one part."""
    response: str = ""
    """For a chat, the model's response; otherwise empty."""
    later: tuple[str, ...] = ()
    """For a conversation of several turns, what follows: query, response, query ..."""

    @classmethod
    def of_turns(cls, number: int, turns: tuple[str, ...]) -> "Document":
        """A conversation: query, response, query ..."""
        text, response = (*turns[:2], "", "")[:2]
        return cls(number, text, response, turns[2:])

    @property
    def characters(self) -> int:
        """The length of all its text."""
        return len(self.text) + len(self.response) + sum(map(len, self.later))


class Walk(Iterator[Document], Protocol):
    """Iterates once over all documents of a source, in the order of a seed and epoch."""

    def state_dict(self) -> dict[str, Any]:
        """The position of the walk."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position `state`, which must be from a walk of the same source, seed and epoch."""
        ...


class Documents(Protocol):
    """A source of documents."""

    @property
    def count(self) -> int | None:
        """Number of documents, including blank ones; None if it is not known without reading all of them."""
        ...

    def walk(self, seed: int, epoch: int) -> Walk:
        """Every document once; the order is a function of `seed` and `epoch`."""
        ...


def is_in_part(text: str, part: Part, held_out: float) -> bool:
    """Whether `text` belongs to `part` if the share `held_out` of all documents is held out."""
    if part == "all":
        return True
    is_held_out = xxhash.xxh3_64_intdigest(text.encode()) < held_out * 2**64
    return is_held_out == (part == "held_out")
