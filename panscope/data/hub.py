"""A streamed dataset of the Hugging Face hub: it is not copied to disk, and its length is not known.

Documents are shuffled within windows: a window of consecutive documents is read and returned in a seeded order. A
checkpoint has the position at the start of the window, which is read again.
"""

import copy
from collections.abc import Callable
from typing import Any

import datasets

from panscope.data.conversations import turns_of
from panscope.data.files import it_has
from panscope.data.order import generator
from panscope.data.source import Document, Walk
from panscope.types import UserError

WINDOW = 10_000
"""Number of documents that are shuffled together and kept in memory."""
Read = Callable[[int, dict[str, Any]], Document]
"""The document of a number and a row."""
_SETTINGS = ("data.column", "data.chat.response")
"""The settings with their names."""


class HubDocuments:
    """The documents of a streamed dataset: the texts of one column and, for chats, the responses of another.

    With `conversations`, the column has lists of turns.
    """

    count = None

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        column: str,
        response: str | None = None,
        *,
        conversations: bool = False,
        window: int = WINDOW,
    ):
        """Read `dataset`; only copies of it are iterated."""
        self._dataset, self._columns, self._window = dataset, (column, response), window
        self._conversations = conversations

    def walk(self, seed: int, epoch: int) -> Walk:
        """Every document once, shuffled within windows."""
        read = self._conversation if self._conversations else self._document
        return _HubWalk(copy.deepcopy(self._dataset), read, self._window, (seed, epoch))

    def _document(self, number: int, row: dict[str, Any]) -> Document:
        """The text and the response, which is empty if no column is given for it."""
        column, response = self._columns
        text = _text(_SETTINGS[0], column, number, row)
        return Document(number, text, "" if response is None else _text(_SETTINGS[1], response, number, row))

    def _conversation(self, number: int, row: dict[str, Any]) -> Document:
        found = _value(_SETTINGS[0], self._columns[0], number, row)
        return Document.of_turns(number, turns_of(found, f"document {number}"))


def _text(setting: str, column: str, number: int, row: dict[str, Any]) -> str:
    """The text that a row has in a column; null is read as empty text."""
    text = _value(setting, column, number, row)
    if not isinstance(text, str | None):
        kind = type(text).__name__
        raise UserError(f"{setting} is {column!r}, which has type {kind} in document {number}; choose a column of text")
    return text or ""


def _value(setting: str, column: str, number: int, row: dict[str, Any]) -> Any:
    """What a row has in a column; raises UserError if it has no such column."""
    if column not in row:
        raise UserError(f"{setting} is {column!r}, but document {number} has no such column{it_has(row)}")
    return row[column]


def open_hub(
    name: str,
    column: str,
    response: str | None = None,
    *,
    conversations: bool = False,
    subset: str | None,
    split: str,
    revision: str | None,
) -> HubDocuments:
    """Open the hub dataset `name` for streaming; raises UserError if it cannot be reached or has no such split."""
    try:
        dataset = datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)
    except (OSError, ValueError) as error:
        raise UserError(f"data.text: the hub dataset {name!r} cannot be opened ({_first_line(error)})") from error
    names = dataset.column_names
    for setting, asked in zip(_SETTINGS, (column, response), strict=True):
        if names is not None and asked is not None and asked not in names:
            known = ", ".join(names)
            raise UserError(f"{setting} is {asked!r}, but {name!r} has the columns {known}; choose one of them")
    return HubDocuments(dataset, column, response, conversations=conversations)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


class _HubWalk:
    def __init__(self, dataset: datasets.IterableDataset, read: Read, window: int, seeds: tuple[int, int]) -> None:
        self._dataset, self._read, self._size, self._seeds = dataset, read, window, seeds
        self._rows = iter(dataset)
        self._start: dict[str, Any] = {"dataset": dataset.state_dict(), "first": 0}
        self._window: list[Document] = []
        self._taken = 0

    def __iter__(self) -> "_HubWalk":
        return self

    def __next__(self) -> Document:
        if self._taken == len(self._window):
            first = self._start["first"] + len(self._window)
            self._start = {"dataset": self._dataset.state_dict(), "first": first}
            self._read_window()
            self._taken = 0
        if not self._window:
            raise StopIteration
        self._taken += 1
        return self._window[self._taken - 1]

    def _read_window(self) -> None:
        first = self._start["first"]
        rows = zip(range(first, first + self._size), self._rows, strict=False)
        documents = [self._read(number, row) for number, row in rows]
        order = generator(*self._seeds, first).permutation(len(documents))
        self._window = [documents[i] for i in order]

    def state_dict(self) -> dict[str, Any]:
        return {**self._start, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start = {"dataset": state["dataset"], "first": state["first"]}
        self._dataset.load_state_dict(state["dataset"])
        self._rows = iter(self._dataset)
        self._window, self._taken = [], 0
        if state["taken"]:
            self._read_window()
            self._taken = state["taken"]
