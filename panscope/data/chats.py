"""Chats: documents in the chat format of a fine-tuned model, with a role for every token (Gemma Scope, section 4.5).

A sequence is BOS, the user prefix, the document as the user's query, the model prefix and, if there is one, the model's
response. The model reads the user prefix, but it is never content: it is the same in every document, and its rows have
much larger norms than all others.

The chat is tokenised as a whole, as in the model's training, and a token has the role of the piece in which it ends. If
pieces were tokenised separately, some tokenizers would add spaces, and tokens across two pieces would be missing.

Shape letters: T tokens of a sequence.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, Self

import torch
from pydantic import model_validator

from panscope.config import Config
from panscope.data.encoding import HEAD_CHARACTERS
from panscope.data.packing import TokenSequence
from panscope.data.source import Document
from panscope.types import Tokenizer, UserError

ContentRoles = Literal["all", "prompt", "response"]
"""Which tokens of a chat are content."""


class ChatConfig(Config):
    """The `[data.chat]` table: the chat format of a fine-tuned model."""

    user: str
    """The prefix of the user's query, for Gemma "<start_of_turn>user\\n"; its tokens are never content."""
    model: str
    """The prefix of the model's response, for Gemma "<end_of_turn>\\n<start_of_turn>model\\n"."""
    response: str | None = None
    """The field with the model's response in a file of chats, in which `data.column` is the query; by default the
    documents are queries without responses."""
    content: ContentRoles = "all"
    """Which tokens give rows and are predicted: all except the user prefix, only the query, or only the response."""

    @model_validator(mode="after")
    def _check_response(self) -> Self:
        if self.content == "response" and self.response is None:
            raise ValueError(
                "content is 'response', but the documents have no responses: set response to their field, or change "
                "content"
            )
        return self


@dataclass(frozen=True)
class _Roles:
    """The token ids of one chat, by role."""

    user: list[int]
    prompt: list[int]
    model: list[int]
    response: list[int]


class ChatSequences:
    """Makes one sequence per chat; a chat without content gives none.

    If a chat is longer than the context, its query is truncated so that the model prefix still fits, and its response
    is truncated to the remaining tokens.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, chat: ChatConfig) -> None:
        """Raises UserError if the prefixes alone fill the context."""
        self._tokenizer, self._context, self._chat = tokenizer, context, chat
        self._prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self._ends = frozenset({tokenizer.bos_id, tokenizer.eos_id})
        self._special = tokenizer.special_ids | self._ends
        prefixes = sum(map(len, tokenizer.encode([chat.user, chat.model])))
        if len(self._prefix) + prefixes >= context:
            raise UserError(
                f"data.chat: user and model have {prefixes} tokens, which leaves none for documents in a context of "
                f"{context}: increase data.context"
            )

    def sequences(self, documents: list[Document]) -> list[TokenSequence]:
        """One sequence for each document with content, in order."""
        sequences = [
            self._sequence(d.number, roles) for d, roles in zip(documents, self._encode(documents), strict=True)
        ]
        return [sequence for sequence in sequences if sequence.content is not None and sequence.content.any()]

    def _encode(self, documents: list[Document]) -> list[_Roles]:
        """Token ids by role; of queries and responses only the tokens that can fit are guaranteed."""
        max_characters = self._context * HEAD_CHARACTERS
        heads = [self._pieces(document, max_characters) for document in documents]
        encoded = self._tokenizer.encode_with_ends(["".join(pieces) for pieces in heads])
        roles_by_document = [_by_role(*each, pieces) for each, pieces in zip(encoded, heads, strict=True)]
        for i, (document, roles) in enumerate(zip(documents, roles_by_document, strict=True)):
            if self._is_short(document.text, roles.prompt) or self._is_short(document.response, roles.response):
                pieces = self._pieces(document, None)
                roles_by_document[i] = _by_role(*self._tokenizer.encode_with_ends(["".join(pieces)])[0], pieces)
        return roles_by_document

    def _pieces(self, document: Document, max_characters: int | None) -> tuple[str, str, str, str]:
        """The text of the four roles; of query and response the first `max_characters` characters."""
        return self._chat.user, document.text[:max_characters], self._chat.model, document.response[:max_characters]

    def _is_short(self, text: str, tokens: list[int]) -> bool:
        """Whether a text was truncated to its head, and the head gave so few tokens that the rest may matter."""
        return len(text) > self._context * HEAD_CHARACTERS and len(tokens) < 2 * self._context

    def _sequence(self, number: int, roles: _Roles) -> TokenSequence:
        available = max(0, self._context - len(self._prefix) - len(roles.user) - len(roles.model))
        prompt = roles.prompt[:available]
        response = roles.response[: available - len(prompt)]
        wanted = self._chat.content
        tokens = self._prefix + roles.user
        content = [False] * len(tokens)
        for piece, is_wanted, excluded in (
            (prompt, wanted in ("all", "prompt"), self._special),
            (roles.model, wanted == "all", self._ends),
            (response, wanted in ("all", "response"), self._special),
        ):
            tokens += piece
            content += [is_wanted and token not in excluded for token in piece]
        token_ids = torch.tensor(tokens[: self._context])
        return TokenSequence(token_ids, torch.full_like(token_ids, number), torch.tensor(content[: self._context]))


def _by_role(tokens: list[int], ends: list[int], pieces: tuple[str, str, str, str]) -> _Roles:
    """Split the tokens by the piece in which each of them ends."""
    bounds = list(accumulate(map(len, pieces)))
    cuts = [0, *(bisect_right(ends, bound) for bound in bounds[:-1]), len(tokens)]
    return _Roles(*(tokens[begin:end] for begin, end in pairwise(cuts)))
