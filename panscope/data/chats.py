"""Chats: documents between the prefixes of a fine-tuned model, every token with its role (Gemma Scope, section 4.5).

A sequence is BOS, the prefix of the user, the document as the user's query, the prefix of the model and, where there
is one, the model's response. The user prefix is seen by the model and is never content: it is the same in every
document, and its rows have a norm far above all others.

The whole is tokenised at once, as the model will meet it, and a token has the role of the piece in which it ends.
Tokenised one by one, pieces would begin with a space that is not there, and tokens that span a seam would be missing.

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

Judged = Literal["all", "prompt", "response"]
"""Which tokens of a chat are content."""


class ChatConfig(Config):
    """The `[data.chat]` table: what a fine-tuned model reads before every document and after it."""

    user: str
    """The prefix of the user's query, in Gemma "<start_of_turn>user\\n"; its tokens are never content."""
    model: str
    """The prefix of the model's response, in Gemma "<end_of_turn>\\n<start_of_turn>model\\n"."""
    response: str | None = None
    """The field of the model's response in a file of chats, `data.column` being that of the query; left out, every
    document is a query that has no response yet."""
    content: Judged = "all"
    """Which tokens give rows and are predicted: all but the user prefix, those of the query, or of the response."""

    @model_validator(mode="after")
    def _has_responses(self) -> Self:
        if self.content == "response" and self.response is None:
            raise ValueError(
                "content is 'response', but the documents have none: set response to its field, or content"
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
    """Makes one sequence of every chat; one that has no content gives none.

    Where a chat is longer than the context, its query is cut so that the model prefix still follows, and its response
    gets the room that is left.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, chat: ChatConfig):
        """Raises UserError if the prefixes alone fill the context."""
        self._tokenizer, self._context, self._chat = tokenizer, context, chat
        self._opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        self._ends = frozenset({tokenizer.bos_id, tokenizer.eos_id})
        self._special = tokenizer.special_ids | self._ends
        prefixes = sum(map(len, tokenizer.encode([chat.user, chat.model])))
        if len(self._opening) + prefixes >= context:
            raise UserError(
                f"data.chat: user and model are {prefixes} tokens, which leaves no room in sequences of "
                f"{context}: raise data.context"
            )

    def of(self, documents: list[Document]) -> list[TokenSequence]:
        """A sequence of every document that has content, in order."""
        found = [self._sequence(d.number, roles) for d, roles in zip(documents, self._encode(documents), strict=True)]
        return [sequence for sequence in found if sequence.content is not None and sequence.content.any()]

    def _encode(self, documents: list[Document]) -> list[_Roles]:
        """By role, the first tokens of queries and responses, as many as fit; the rest of them may be missing."""
        most = self._context * HEAD_CHARACTERS
        heads = [self._pieces(document, most) for document in documents]
        encoded = self._tokenizer.encode_with_ends(["".join(pieces) for pieces in heads])
        found = [_by_role(*each, pieces) for each, pieces in zip(encoded, heads, strict=True)]
        for i, (document, roles) in enumerate(zip(documents, found, strict=True)):
            if self._is_short(document.text, roles.prompt) or self._is_short(document.response, roles.response):
                pieces = self._pieces(document, None)
                found[i] = _by_role(*self._tokenizer.encode_with_ends(["".join(pieces)])[0], pieces)
        return found

    def _pieces(self, document: Document, most: int | None) -> tuple[str, str, str, str]:
        """The text in its four roles; of query and response the first `most` characters."""
        return self._chat.user, document.text[:most], self._chat.model, document.response[:most]

    def _is_short(self, text: str, tokens: list[int]) -> bool:
        """Whether a head was cut off and gave so few tokens that its end may matter."""
        return len(text) > self._context * HEAD_CHARACTERS and len(tokens) < 2 * self._context

    def _sequence(self, number: int, roles: _Roles) -> TokenSequence:
        room = max(0, self._context - len(self._opening) - len(roles.user) - len(roles.model))
        prompt = roles.prompt[:room]
        response = roles.response[: room - len(prompt)]
        wanted = self._chat.content
        tokens = self._opening + roles.user
        content = [False] * len(tokens)
        for piece, is_wanted, never in (
            (prompt, wanted in ("all", "prompt"), self._special),
            (roles.model, wanted == "all", self._ends),
            (response, wanted in ("all", "response"), self._special),
        ):
            tokens += piece
            content += [is_wanted and token not in never for token in piece]
        token_ids = torch.tensor(tokens[: self._context])
        return TokenSequence(token_ids, torch.full_like(token_ids, number), torch.tensor(content[: self._context]))


def _by_role(tokens: list[int], ends: list[int], pieces: tuple[str, str, str, str]) -> _Roles:
    """Each token to the piece in which it ends."""
    bounds = list(accumulate(map(len, pieces)))
    cuts = [0, *(bisect_right(ends, bound) for bound in bounds[:-1]), len(tokens)]
    return _Roles(*(tokens[begin:end] for begin, end in pairwise(cuts)))
