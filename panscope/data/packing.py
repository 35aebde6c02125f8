"""Two ways to make sequences of documents: one a document, or all joined and cut.

`documents` (Llama Scope, section 3.2): BOS if there is one, then the document, cut at the context. `stream`
(Multi-Layer SAE, section 3): the documents joined by EOS if there is one, cut into pieces of exactly the context; the
last, incomplete piece is dropped, unless all of the text is asked for.

Shape letters: T tokens of a sequence.
"""

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from panscope.types import Tokenizer

Encoded = ListLike[tuple[int, list[int]]]
"""Documents as (number, token ids)."""


@dataclass(frozen=True)
class TokenSequence:
    """Tokens that the language model sees together."""

    token_ids: Tensor
    """[T] int64."""
    document_ids: Tensor
    """[T] int64."""
    content: Tensor | None = None
    """[T] bool: which tokens are content, where their roles say so; None where all are that are not special."""


class Packer(Protocol):
    """Makes sequences of documents that come in chunks; how they are chunked changes nothing."""

    @property
    def needed(self) -> int | None:
        """How many tokens of a document are used at most; None for all."""
        ...

    def pack(self, documents: Encoded) -> list[TokenSequence]:
        """The sequences that are complete once `documents` have come."""
        ...

    def rest(self) -> list[TokenSequence]:
        """The incomplete sequence at the end of the text, if there is one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The tokens that wait for more."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Wait with the tokens of `state`."""
        ...


class DocumentPacker:
    """One sequence a document; a document without tokens gives none."""

    def __init__(self, tokenizer: Tokenizer, context: int):
        self._opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self.needed = context - len(self._opening)

    def pack(self, documents: Encoded) -> list[TokenSequence]:
        """As many sequences as there are documents with tokens."""
        return [self._sequence(number, tokens) for number, tokens in documents if tokens]

    def _sequence(self, number: int, tokens: list[int]) -> TokenSequence:
        token_ids = torch.tensor(self._opening + tokens[: self.needed])
        return TokenSequence(token_ids, torch.full_like(token_ids, number))

    def rest(self) -> list[TokenSequence]:
        """None: every sequence is complete."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing waits."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing waits."""


class StreamPacker:
    """Pieces of the joined documents; an EOS between two documents counts to the first of them."""

    needed = None

    def __init__(self, tokenizer: Tokenizer, context: int):
        self._joint = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        self._context = context
        self._token_ids = torch.empty(0, dtype=torch.int64)
        self._document_ids = torch.empty(0, dtype=torch.int64)
        self._last: int | None = None

    def pack(self, documents: Encoded) -> list[TokenSequence]:
        """The complete pieces; what is left waits for more documents."""
        token_ids, document_ids = [self._token_ids], [self._document_ids]
        for number, tokens in documents:
            if tokens:
                joint = [] if self._last is None else self._joint
                token_ids.append(torch.tensor(joint + tokens))
                document_ids.append(torch.tensor([self._last] * len(joint) + [number] * len(tokens)))
                self._last = number
        return self._cut(torch.cat(token_ids), torch.cat(document_ids))

    def _cut(self, token_ids: Tensor, document_ids: Tensor) -> list[TokenSequence]:
        pieces = len(token_ids) // self._context
        end = pieces * self._context
        self._token_ids, self._document_ids = token_ids[end:].clone(), document_ids[end:].clone()
        shape = (pieces, self._context)
        both = zip(token_ids[:end].view(shape), document_ids[:end].view(shape), strict=True)
        return [TokenSequence(*pair) for pair in both]

    def rest(self) -> list[TokenSequence]:
        """The incomplete piece."""
        return [TokenSequence(self._token_ids, self._document_ids)] if len(self._token_ids) else []

    def state_dict(self) -> dict[str, Any]:
        """The incomplete piece and the last document."""
        return {"token_ids": self._token_ids, "document_ids": self._document_ids, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the incomplete piece of `state`."""
        self._token_ids, self._document_ids = state["token_ids"], state["document_ids"]
        self._last = state["last"]


PACKERS: dict[str, type[DocumentPacker] | type[StreamPacker]] = {
    "documents": DocumentPacker,
    "stream": StreamPacker,
}
