"""Packing of documents into token sequences: one sequence per document, or a stream split into equal pieces.

`documents` (Llama Scope, section 3.2): BOS, if the tokenizer has it, and the document, truncated to the context.
`stream` (Multi-Layer SAE, section 3): the documents are joined by EOS, if the tokenizer has it, and split into
sequences of exactly the context; the incomplete last one is dropped, unless it is requested.

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
    """Tokens that the language model processes as one sequence."""

    token_ids: Tensor
    """[T] int64."""
    document_ids: Tensor
    """[T] int64."""
    content: Tensor | None = None
    """[T] bool: which tokens are content, if that depends on roles; None if all but special tokens are content."""


class Packer(Protocol):
    """Packs documents into sequences, chunk by chunk; the result does not depend on the chunks."""

    @property
    def needed(self) -> int | None:
        """Maximum number of tokens used of a document; None for all."""
        ...

    def pack(self, documents: Encoded) -> list[TokenSequence]:
        """Add `documents`; returns the sequences completed by them."""
        ...

    def remainder(self) -> list[TokenSequence]:
        """The incomplete sequence at the end of the text, if any."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The tokens of the incomplete sequence."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the incomplete sequence of `state`."""
        ...


class DocumentPacker:
    """One sequence per document; a document without tokens gives none."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self.needed = context - len(self._prefix)

    def pack(self, documents: Encoded) -> list[TokenSequence]:
        """One sequence for each document with tokens."""
        return [self._sequence(number, tokens) for number, tokens in documents if tokens]

    def _sequence(self, number: int, tokens: list[int]) -> TokenSequence:
        token_ids = torch.tensor(self._prefix + tokens[: self.needed])
        return TokenSequence(token_ids, torch.full_like(token_ids, number))

    def remainder(self) -> list[TokenSequence]:
        """Empty, as every sequence is complete."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing: there is no incomplete sequence."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: there is no incomplete sequence."""


class StreamPacker:
    """Splits the joined documents into sequences; the EOS between two documents belongs to the first."""

    needed = None

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self._separator = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        self._context = context
        self._token_ids = torch.empty(0, dtype=torch.int64)
        self._document_ids = torch.empty(0, dtype=torch.int64)
        self._last: int | None = None

    def pack(self, documents: Encoded) -> list[TokenSequence]:
        """Add `documents`; returns the complete sequences and keeps the remainder."""
        token_ids, document_ids = [self._token_ids], [self._document_ids]
        for number, tokens in documents:
            if tokens:
                separator = [] if self._last is None else self._separator
                token_ids.append(torch.tensor(separator + tokens))
                document_ids.append(torch.tensor([self._last] * len(separator) + [number] * len(tokens)))
                self._last = number
        return self._cut(torch.cat(token_ids), torch.cat(document_ids))

    def _cut(self, token_ids: Tensor, document_ids: Tensor) -> list[TokenSequence]:
        pieces = len(token_ids) // self._context
        end = pieces * self._context
        self._token_ids, self._document_ids = token_ids[end:].clone(), document_ids[end:].clone()
        shape = (pieces, self._context)
        both = zip(token_ids[:end].view(shape), document_ids[:end].view(shape), strict=True)
        return [TokenSequence(*pair) for pair in both]

    def remainder(self) -> list[TokenSequence]:
        """The incomplete sequence, if any."""
        return [TokenSequence(self._token_ids, self._document_ids)] if len(self._token_ids) else []

    def state_dict(self) -> dict[str, Any]:
        """The incomplete sequence and the number of the last document."""
        return {"token_ids": self._token_ids, "document_ids": self._document_ids, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the incomplete sequence of `state`."""
        self._token_ids, self._document_ids = state["token_ids"], state["document_ids"]
        self._last = state["last"]


PACKERS: dict[str, type[DocumentPacker] | type[StreamPacker]] = {
    "documents": DocumentPacker,
    "stream": StreamPacker,
}
