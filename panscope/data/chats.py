"""Chats: documents in the chat format of a fine-tuned model, with a role for every token (Gemma Scope, section 4.5).

A sequence is BOS, the user prefix, the document as the user's query, the model prefix and, if there is one, the model's
response. The model reads the user prefix, but it is never content: it is the same in every document, and its rows have
much larger norms than all others. A conversation of several turns (WildChat, as in Llama Scope, section 5) continues
with the prefix of a later query, the query, the model prefix and the response, and so on.

The chat is tokenised as a whole, as in the model's training, and a token has the role of the piece in which it ends. If
pieces were tokenised separately, some tokenizers would add spaces, and tokens across two pieces would be missing.

Shape letters: T tokens of a sequence.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    next_user: str | None = None
    """The prefix of every later query, for Gemma "<end_of_turn>\\n<start_of_turn>user\\n"; its tokens are never
    content. If it is set, documents are conversations: `data.column` has a list of turns, each with a `role` (user or
    assistant) and a `content`."""
    content: ContentRoles = "all"
    """Which tokens give rows and are predicted: all except the user prefixes, only queries, or only responses."""

    @property
    def has_responses(self) -> bool:
        """Whether the documents have responses of their own."""
        return self.response is not None or self.next_user is not None

    @model_validator(mode="after")
    def _check_response(self) -> Self:
        if self.response is not None and self.next_user is not None:
            raise ValueError(
                "response and next_user are both set, but conversations have their responses in data.column: set "
                "response for chats of one turn, next_user for conversations"
            )
        if self.content == "response" and not self.has_responses:
            raise ValueError(
                "content is 'response', but the documents have no responses: set response to their field, or change "
                "content"
            )
        return self


@dataclass(frozen=True)
class _Turn:
    """The token ids of a query and its response, each after its prefix."""

    user: list[int]
    prompt: list[int]
    model: list[int]
    response: list[int]

    @property
    def least(self) -> int:
        """Number of tokens without the response."""
        return len(self.user) + len(self.prompt) + len(self.model)


class ChatSequences:
    """Makes one sequence per chat; a chat without content gives none.

    If a chat is longer than the context, its first query is truncated so that the model prefix still fits, and the last
    response is truncated to the remaining tokens. A later query that does not fit with its prefixes ends the chat.
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
            self._sequence(d.number, turns) for d, turns in zip(documents, self._encode(documents), strict=True)
        ]
        return [sequence for sequence in sequences if sequence.content is not None and sequence.content.any()]

    def _encode(self, documents: list[Document]) -> list[list[_Turn]]:
        """Token ids by role; of queries and responses only the tokens that can fit are guaranteed."""
        max_characters = self._context * HEAD_CHARACTERS
        heads = [self._pieces(document, max_characters) for document in documents]
        encoded = self._tokenizer.encode_with_ends(["".join(pieces) for pieces in heads])
        chats = [_by_role(*each, pieces) for each, pieces in zip(encoded, heads, strict=True)]
        for i, (document, turns) in enumerate(zip(documents, chats, strict=True)):
            if self._is_short(document, turns):
                pieces = self._pieces(document, None)
                chats[i] = _by_role(*self._tokenizer.encode_with_ends(["".join(pieces)])[0], pieces)
        return chats

    def _pieces(self, document: Document, max_characters: int | None) -> list[str]:
        """The text of the four roles of each turn: of a query or response the first `max_characters` characters, and
        no turn after so many."""
        chat, texts = self._chat, _texts(document)
        pieces = [chat.user, texts[0][:max_characters], chat.model, texts[1][:max_characters]]
        characters = len(texts[0]) + len(texts[1])
        for query, response in zip(texts[2::2], texts[3::2], strict=True):
            if max_characters is not None and characters > max_characters:
                break
            pieces += [chat.next_user or "", query[:max_characters], chat.model, response[:max_characters]]
            characters += len(query) + len(response)
        return pieces

    def _is_short(self, document: Document, turns: list[_Turn]) -> bool:
        """Whether the text was truncated, and what is left gave so few tokens that the rest may matter."""
        texts = _texts(document)
        tokens = [piece for turn in turns for piece in (turn.prompt, turn.response)]
        if len(tokens) < len(texts) and sum(map(len, tokens)) < 2 * self._context:
            return True
        return any(
            len(text) > self._context * HEAD_CHARACTERS and len(found) < 2 * self._context
            for text, found in zip(texts, tokens, strict=False)
        )

    def _sequence(self, number: int, turns: list[_Turn]) -> TokenSequence:
        first, *later = turns
        available = max(0, self._context - len(self._prefix) - len(first.user) - len(first.model))
        tokens, content = list(self._prefix), [False] * len(self._prefix)
        for i, turn in enumerate((replace(first, prompt=first.prompt[:available]), *later)):
            if i > 0 and len(tokens) + turn.least > self._context:
                break
            for piece, is_content in self._roles(turn):
                tokens += piece
                content += is_content
        token_ids = torch.tensor(tokens[: self._context])
        return TokenSequence(token_ids, torch.full_like(token_ids, number), torch.tensor(content[: self._context]))

    def _roles(self, turn: _Turn) -> Iterator[tuple[list[int], list[bool]]]:
        """The tokens of each role, and whether they are content."""
        wanted = self._chat.content
        for piece, is_wanted, excluded in (
            (turn.user, False, self._special),
            (turn.prompt, wanted in ("all", "prompt"), self._special),
            (turn.model, wanted == "all", self._ends),
            (turn.response, wanted in ("all", "response"), self._special),
        ):
            yield piece, [is_wanted and token not in excluded for token in piece]


def _texts(document: Document) -> list[str]:
    """Query, response, query, response ... of a document; a query without response has an empty one."""
    texts = [document.text, document.response, *document.later]
    return [*texts, ""] if len(texts) % 2 else texts


def _by_role(tokens: list[int], ends: list[int], pieces: list[str]) -> list[_Turn]:
    """Split the tokens by the piece in which each of them ends."""
    bounds = list(accumulate(map(len, pieces)))
    cuts = [0, *(bisect_right(ends, bound) for bound in bounds[:-1]), len(tokens)]
    found = [tokens[begin:end] for begin, end in pairwise(cuts)]
    return [_Turn(*found[i : i + 4]) for i in range(0, len(found), 4)]
