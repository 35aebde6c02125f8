"""The `[data]` table, and opening its documents: local files or a streamed hub dataset."""

import re
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from panscope import builtin
from panscope.config import Config, expanded
from panscope.data.chats import ChatConfig
from panscope.data.conversations import ConversationFile
from panscope.data.files import TextFile, open_file
from panscope.data.hub import open_hub
from panscope.data.order import generator
from panscope.data.source import Document, Documents, Walk
from panscope.types import UserError

DEMO_TEXT = "panscope://demo"
TRAIN = "train"
HUB_ONLY: dict[str, Any] = {"subset": None, "split": TRAIN, "revision": None}
"""Fields that only hub datasets have, with their defaults."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w*")


class DataConfig(Config):
    """The text, and its packing into sequences."""

    text: tuple[str, ...] = Field(default=(DEMO_TEXT,), min_length=1)
    """Local .txt (documents are separated by blank lines), .jsonl or .parquet files, `panscope://demo`,
    or one hub dataset `owner/name`."""
    column: str = "text"
    """The field of .jsonl lines or the column of .parquet files and hub datasets with the text; for chats, with the
    query or the conversation."""
    subset: str | None = None
    """The configuration of a hub dataset, if it has several."""
    split: str = TRAIN
    """The split of a hub dataset."""
    revision: str | None = None
    """The commit, tag or branch of a hub dataset; by default the newest commit."""
    packing: Literal["documents", "stream"] = "documents"
    """`documents`: a sequence is BOS and one document, truncated to the context; `stream`: documents are joined by EOS
    and split into sequences as long as the context."""
    context: int | None = Field(default=None, ge=2)
    """Maximum tokens per sequence; by default the model's context, at most 1,024."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of the documents that is held out for evaluation and never trained on."""
    sequences: int = Field(default=32, ge=1)
    """Number of sequences per pass of the language model."""
    chat: ChatConfig | None = None
    """The chat format in which a fine-tuned model reads the documents; by default they are read as plain text."""

    @field_validator("text", mode="before")
    @classmethod
    def _as_tuple(cls, text: Any) -> Any:
        return (text,) if isinstance(text, str) else text

    @model_validator(mode="after")
    def _check_chat_packing(self) -> Self:
        if self.chat is not None and self.packing == "stream":
            raise ValueError("packing is 'stream', but every chat needs its own sequence: set packing to 'documents'")
        return self


class LocalDocuments:
    """The documents of local files, numbered file by file; each walk needs 8 bytes of memory per document."""

    def __init__(self, files: list[TextFile], responses: list[TextFile] | None = None) -> None:
        """For chats, `responses` are the same files, opened with the field of the responses."""
        self._files, self._responses = files, responses
        self._units = np.concatenate([file.units for file in files])
        self._ends = np.cumsum([file.units.sum() for file in files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def count(self) -> int:
        """Number of documents, including blank ones."""
        return len(self)

    def text(self, number: int) -> str:
        """The text of document `number`; raises UserError, naming the line, if it cannot be read."""
        file, index = self._place(number)
        return self._files[file].read(index)

    def document(self, number: int) -> Document:
        """Document `number`, with its response if it is a chat."""
        file, index = self._place(number)
        source = self._files[file]
        if isinstance(source, ConversationFile):
            return Document.of_turns(number, source.turns(index))
        response = "" if self._responses is None else self._responses[file].read(index)
        return Document(number, source.read(index), response)

    def _place(self, number: int) -> tuple[int, int]:
        """The file of document `number`, and its number within that file."""
        file = self.file_of(number)
        return file, number - (int(self._ends[file - 1]) if file else 0)

    def file_of(self, number: int) -> int:
        """Index of the file with document `number`."""
        return int(np.searchsorted(self._ends, number, side="right"))

    def walk(self, seed: int, epoch: int) -> Walk:
        """Every document once, in a seeded order; the documents of a Parquet row group stay together."""
        return _LocalWalk(self, self._order(generator(seed, epoch)))

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """[documents] a permutation that shuffles the units, and the documents within each unit."""
        if len(self._units) == len(self):
            return rng.permutation(len(self))
        rank = np.repeat(rng.permutation(len(self._units)), self._units)
        return np.lexsort((rng.random(len(self)), rank))


class _LocalWalk:
    def __init__(self, documents: LocalDocuments, order: np.ndarray) -> None:
        self._documents, self._order, self._taken = documents, order, 0

    def __iter__(self) -> "_LocalWalk":
        return self

    def __next__(self) -> Document:
        if self._taken == len(self._order):
            raise StopIteration
        number = int(self._order[self._taken])
        self._taken += 1
        return self._documents.document(number)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._taken = state["taken"]


def open_documents(config: DataConfig) -> LocalDocuments | Documents:
    """Open the documents of `config.text`; raises UserError if a file or dataset is invalid, or all are empty."""
    hub = [name for name in config.text if _is_hub_id(name)]
    if not hub:
        return _open_local(config)
    if len(config.text) > 1:
        raise UserError(f"data.text: the hub dataset {hub[0]!r} cannot be combined with other text; give it alone")
    return open_hub(
        hub[0],
        config.column,
        _response_of(config),
        conversations=_are_conversations(config),
        subset=config.subset,
        split=config.split,
        revision=config.revision,
    )


def _open_local(config: DataConfig) -> LocalDocuments:
    for name, default in HUB_ONLY.items():
        if getattr(config, name) != default:
            raise UserError(
                f"data.{name} is {getattr(config, name)!r}, but {config.text[0]!r} is not a hub dataset: files have no "
                f"{name}; leave it out"
            )
    paths = [builtin.DEMO_TEXT if name == DEMO_TEXT else expanded(name) for name in config.text]
    response, responses = _response_of(config), None
    texts: list[TextFile] = [
        (ConversationFile if _are_conversations(config) else open_file)(path, config.column) for path in paths
    ]
    if response is not None:
        responses = [open_file(path, response, setting="data.chat.response") for path in paths]
    documents = LocalDocuments(texts, responses)
    if not len(documents):
        raise UserError(f"data.text: there is no document in {', '.join(map(str, paths))}; give a file with text")
    return documents


def _response_of(config: DataConfig) -> str | None:
    """The field of the responses; None if documents are not chats or have no responses."""
    return None if config.chat is None else config.chat.response


def _are_conversations(config: DataConfig) -> bool:
    return config.chat is not None and config.chat.next_user is not None


def _is_hub_id(name: str) -> bool:
    """Whether `name` is owner/name and not a path: it does not exist as a path and has no file suffix."""
    is_file_like = Path(name).exists() or _FILE_SUFFIX.fullmatch(Path(name).suffix)
    return bool(_HUB_ID.fullmatch(name)) and not is_file_like
