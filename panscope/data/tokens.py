"""A stream of batches of token sequences from documents, which are selected, shuffled and tokenised in chunks.

Only one chunk of documents is in memory, never the whole text. A checkpoint has the position at the start of the chunk
and the number of its sequences that were returned; loading it tokenises the chunk again, so that the stream continues
with exactly the same batches.

Shape letters: N sequences, T tokens of the longest of them.
"""

from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from panscope.data.chats import ChatSequences
from panscope.data.documents import DataConfig
from panscope.data.encoding import encode_heads
from panscope.data.packing import PACKERS, TokenSequence
from panscope.data.source import Document, Documents, Part, is_in_part
from panscope.types import TokenBatch, Tokenizer, UserError

CHUNK_DOCUMENTS = 64
CHUNK_CHARACTERS = 2**20
"""A chunk ends at the document that reaches either number."""


class TokenStream:
    """An iterator of TokenBatch over one part of the documents, for several epochs, each in a different seeded order.

    A batch may span two epochs; only the last one of all may have fewer than `config.sequences` sequences.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        config: DataConfig,
        *,
        part: Part,
        seed: int,
        epochs: int | None,
        keep_rest: bool = False,
    ):
        """Stream `part` of `documents` for `epochs` epochs, or without end if None; `config.context` must be set.

        With `keep_rest` the incomplete sequence at the end of an epoch is kept, which packing "stream" drops otherwise.
        """
        assert config.context is not None, "the plan sets the context before text is packed"
        self._context = config.context
        self._documents, self._tokenizer, self._config = documents, tokenizer, config
        self._part: Part = part
        self._keep_rest = keep_rest
        self._seed, self._epochs = seed, epochs
        self._chats = None if config.chat is None else ChatSequences(tokenizer, self._context, config.chat)
        special = tokenizer.special_ids | {tokenizer.bos_id, tokenizer.eos_id}
        self._special = torch.tensor(sorted(i for i in special if i is not None), dtype=torch.int64)
        self._start_epoch(0)

    @property
    def epoch(self) -> int:
        """The epoch of the last sequence of the last batch, from 0."""
        return self._epoch

    def __iter__(self) -> "TokenStream":
        return self

    def __next__(self) -> TokenBatch:
        """The next batch; raises UserError if the part has no text, or too little for packing "stream"."""
        wanted = self._config.sequences
        sequences: list[TokenSequence] = []
        while len(sequences) < wanted and self._has_more():
            new = self._chunk[self._returned : self._returned + wanted - len(sequences)]
            self._returned += len(new)
            sequences += new
        if not sequences:
            raise StopIteration
        return self._batch(sequences)

    def _batch(self, sequences: list[TokenSequence]) -> TokenBatch:
        """Pad on the right to the longest sequence."""
        token_ids = pad_sequence([s.token_ids for s in sequences], batch_first=True)
        document_ids = pad_sequence([s.document_ids for s in sequences], batch_first=True, padding_value=-1)
        mask = document_ids >= 0
        roles = [s.content for s in sequences if s.content is not None]
        content = pad_sequence(roles, batch_first=True) if roles else mask & ~torch.isin(token_ids, self._special)
        positions = torch.arange(token_ids.shape[1]).expand_as(token_ids).contiguous()
        return TokenBatch(token_ids, mask, content, document_ids, positions)

    def _start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._walk = self._documents.walk(self._seed, epoch)
        self._packer = PACKERS[self._config.packing](self._tokenizer, self._context)
        self._sequence_count = 0
        self._start_chunk()

    def _start_chunk(self) -> None:
        """Save the state at the start of the next chunk, and make the current chunk empty."""
        self._start = {
            "walk": self._walk.state_dict(),
            "packer": self._packer.state_dict(),
            "made": self._sequence_count,
        }
        self._chunk: list[TokenSequence] = []
        self._returned = 0
        self._walk_ended = False

    def _has_more(self) -> bool:
        """Read chunks until there is a sequence to return; False after the last epoch."""
        while self._returned == len(self._chunk):
            if not self._walk_ended:
                self._start_chunk()
                self._read_chunk()
            elif self._sequence_count == 0:
                raise self._no_sequence_error()
            elif self._epoch + 1 == self._epochs:
                return False
            else:
                self._start_epoch(self._epoch + 1)
        return True

    def _read_chunk(self) -> None:
        documents = self._next_documents()
        self._chunk = self._sequences(documents) if self._chats is None else self._chats.sequences(documents)
        if self._walk_ended and self._keep_rest:
            self._chunk += self._packer.remainder()
        self._sequence_count += len(self._chunk)

    def _sequences(self, documents: list[Document]) -> list[TokenSequence]:
        """Pack documents that are not chats."""
        encoded = encode_heads(self._tokenizer, [document.text for document in documents], self._packer.needed)
        return self._packer.pack([(d.number, ids) for d, ids in zip(documents, encoded, strict=True)])

    def _next_documents(self) -> list[Document]:
        """The next chunk of documents of the part, without blank ones."""
        chunk: list[Document] = []
        characters = 0
        for document in self._walk:
            if document.text.strip() and is_in_part(document.text, self._part, self._config.held_out):
                chunk.append(document)
                characters += document.characters
            if len(chunk) == CHUNK_DOCUMENTS or characters >= CHUNK_CHARACTERS:
                return chunk
        self._walk_ended = True
        return chunk

    def _no_sequence_error(self) -> UserError:
        """The error for an epoch without a sequence."""
        names = ", ".join(self._config.text)
        part = {"training": "training", "held_out": "held-out", "all": "whole"}[self._part]
        if self._config.chat is not None:
            return UserError(
                f"data.chat: the {part} part of {names} has no content (data.chat.content "
                f"{self._config.chat.content!r}) within the first {self._context} tokens of any chat; give other text "
                "or change data.chat.content or data.context"
            )
        return UserError(
            f"data.text: the {part} part of {names} has too little text for one sequence "
            f"(packing {self._config.packing!r}, context {self._config.context}, held_out {self._config.held_out}); "
            "give more text or change these (in a .txt file, blank lines separate documents)"
        )

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream; small, with at most one incomplete sequence of tokens."""
        return {"documents": self._documents.count, "epoch": self._epoch, "given": self._returned, **self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the batch after `state`; raises UserError if the number of documents has changed."""
        if state["documents"] != self._documents.count:
            raise UserError(
                f"data.text: there are {self._documents.count} documents, but the checkpoint was written with "
                f"{state['documents']}; resume with the same text"
            )
        self._start_epoch(state["epoch"])
        self._walk.load_state_dict(state["walk"])
        self._packer.load_state_dict(state["packer"])
        self._sequence_count = state["made"]
        self._start_chunk()
        if state["given"]:
            self._read_chunk()
            self._returned = state["given"]
