"""The `[data]` table, and the documents it names: local files or a streamed hub dataset."""

import re
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from panscope import builtin
from panscope.config import Config, expanded
from panscope.data.chats import ChatConfig
from panscope.data.files import TextFile, open_file
from panscope.data.hub import open_hub
from panscope.data.order import generator
from panscope.data.source import Document, Documents, Walk
from panscope.types import UserError

DEMO_TEXT = "panscope://demo"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w*")


class DataConfig(Config):
    """Which text is read and how it is packed into sequences."""

    text: tuple[str, ...] = Field(default=(DEMO_TEXT,), min_length=1)
    """Local .txt (documents are separated by blank lines), .jsonl or .parquet files, `panscope://demo`,
    or one hub dataset `owner/name`."""
    column: str = "text"
    """The field of .jsonl lines or the column of .parquet files and hub datasets that holds the text."""
    subset: str | None = None
    """The configuration of a hub dataset, where it has several."""
    split: str = "train"
    """The split of a hub dataset."""
    revision: str | None = None
    """The commit, tag or branch of a hub dataset; the newest if it is not set."""
    packing: Literal["documents", "stream"] = "documents"
    """`documents`: a sequence is one document, after BOS, cut at the context; `stream`: documents joined by EOS and cut
    into pieces as long as the context."""
    context: int | None = Field(default=None, ge=2)
    """Tokens of a sequence at most; left out, the plan takes the model's context, at most 1,024."""
    held_out: float = Field(default=0.05, ge=0, lt=1)
    """Share of the documents that is kept for evaluation and never trained on."""
    sequences: int = Field(default=32, ge=1)
    """Sequences of one pass of the language model."""
    chat: ChatConfig | None = None
    """How documents are put to a fine-tuned model; left out, they stand as they are."""

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_several(cls, text: Any) -> Any:
        return (text,) if isinstance(text, str) else text

    @model_validator(mode="after")
    def _chats_stand_alone(self) -> Self:
        if self.chat is not None and self.packing == "stream":
            raise ValueError("packing is 'stream', but a chat begins its own sequence: set packing to 'documents'")
        return self


class LocalDocuments:
    """The documents of local files, one file after the other; 8 bytes a document more while one order is in use."""

    def __init__(self, files: list[TextFile], responses: list[TextFile] | None = None):
        """Of chats, `responses` are the same files read for another field."""
        self._files, self._responses = files, responses
        self._units = np.concatenate([file.units for file in files])
        self._ends = np.cumsum([file.units.sum() for file in files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def count(self) -> int:
        """How many documents there are, blank ones too."""
        return len(self)

    def text(self, number: int) -> str:
        """The text of document `number`; raises UserError if the file has none there, naming the line."""
        return self._read(self._files, number)

    def document(self, number: int) -> Document:
        """Document `number`, with its response if it is a chat."""
        response = "" if self._responses is None else self._read(self._responses, number)
        return Document(number, self.text(number), response)

    def _read(self, files: list[TextFile], number: int) -> str:
        file = self.file_of(number)
        first = int(self._ends[file - 1]) if file else 0
        return files[file].read(number - first)

    def file_of(self, number: int) -> int:
        """Which of the files document `number` is in, from 0."""
        return int(np.searchsorted(self._ends, number, side="right"))

    def walk(self, seed: int, epoch: int) -> Walk:
        """Every document once, in a seeded order; the rows of a Parquet row group stay together, shuffled."""
        return _LocalWalk(self, self._order(generator(seed, epoch)))

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """[documents] a permutation: units in a random order, and the documents within each in a random order."""
        if len(self._units) == len(self):
            return rng.permutation(len(self))
        place = np.repeat(rng.permutation(len(self._units)), self._units)
        return np.lexsort((rng.random(len(self)), place))


class _LocalWalk:
    def __init__(self, documents: LocalDocuments, order: np.ndarray):
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
    """The documents of `config.text`; raises UserError if a file or dataset cannot be opened or all are empty."""
    hub = [name for name in config.text if _is_hub_id(name)]
    if not hub:
        return _open_local(config)
    if len(config.text) > 1:
        raise UserError(f"data.text: the hub dataset {hub[0]!r} stands beside other text; give it alone")
    return open_hub(
        hub[0], config.column, _response_of(config), subset=config.subset, split=config.split, revision=config.revision
    )


def _open_local(config: DataConfig) -> LocalDocuments:
    paths = [builtin.DEMO_TEXT if name == DEMO_TEXT else expanded(name) for name in config.text]
    response, responses = _response_of(config), None
    texts = [open_file(path, config.column) for path in paths]
    if response is not None:
        responses = [open_file(path, response, setting="data.chat.response") for path in paths]
    documents = LocalDocuments(texts, responses)
    if not len(documents):
        raise UserError(f"data.text: there is no document in {', '.join(map(str, paths))}; give a file with text")
    return documents


def _response_of(config: DataConfig) -> str | None:
    """The field of the responses, if documents are chats."""
    return None if config.chat is None else config.chat.response


def _is_hub_id(name: str) -> bool:
    """Whether `name` is owner/name, not a path: no such file is there and it does not end like a file's name."""
    is_file_like = Path(name).exists() or _FILE_SUFFIX.fullmatch(Path(name).suffix)
    return bool(_HUB_ID.fullmatch(name)) and not is_file_like
