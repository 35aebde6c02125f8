"""A Hugging Face tokenizer as the text pipeline wants it: ids without special tokens, and which ids are special."""

import json
from itertools import accumulate
from typing import Any

import transformers
import xxhash

from panscope.types import UserError


class HfTokenizer:
    """Implements `panscope.types.Tokenizer`; ids that the tokenizer does not name are taken from the model's config.

    An id outside the model's vocabulary does not exist: configs of small models carry such leftovers of big ones.
    """

    def __init__(
        self, tokenizer: "transformers.PreTrainedTokenizerBase", config: "transformers.PretrainedConfig"
    ) -> None:
        self._tokenizer = tokenizer
        bos, eos, pad = (
            _known_ids(tokenizer, config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        )
        self._bos_id = bos[0] if bos else None
        self._eos_id = eos[0] if eos else None
        self._closing_ids = frozenset([*bos, *eos])
        self._special_ids = frozenset([*tokenizer.all_special_ids, *bos, *eos, *pad])

    def vocabulary_hash(self) -> str:
        """16 hex digits that tell tokenizers with other tokens apart."""
        return xxhash.xxh3_64_hexdigest(json.dumps(sorted(self._tokenizer.get_vocab().items())).encode())

    @property
    def bos_id(self) -> int | None:
        """The token that opens a document, or None where the model has none."""
        return self._bos_id

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document, or None where the model has none."""
        return self._eos_id

    @property
    def closing_ids(self) -> frozenset[int]:
        """Every token that ends a document: each EOS there is, and BOS, which begins another one."""
        return self._closing_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Every id that is not text; `unk` is among them where there is one."""
        return self._special_ids

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with no special token added and no length limit."""
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]

    def encode_with_ends(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """The same, and where in the text each token ends, in characters; raises UserError where that is not known."""
        if not texts:
            return []
        if not self._tokenizer.is_fast:
            raise UserError(
                f"data.chat needs to know where tokens end, which the tokenizer {type(self._tokenizer).__name__} of "
                "this model does not say: give a model with a tokenizer.json"
            )
        encoded = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        ends = [list(accumulate((end for _, end in spans), max)) for spans in encoded["offset_mapping"]]
        return list(zip(encoded["input_ids"], ends, strict=True))

    def decode_after(self, before: list[int], tokens: list[int]) -> str:
        """The text that `tokens` add to the text of `before`; special tokens have none.

        Many tokenizers write the first token of a text without its space, so it cannot be read alone.
        """
        start, whole = self._decode(before), self._decode(before + tokens)
        if not whole.startswith(start):
            raise UserError(
                f"the tokenizer {type(self._tokenizer).__name__} of this model writes {start[-20:]!r} otherwise when "
                "more follows, so where a response begins cannot be told: end the prompts with a whole word"
            )
        return whole[len(start) :]

    def _decode(self, tokens: list[int]) -> str:
        text_tokens = [token for token in tokens if token not in self._special_ids]  # some tokenizers know not all
        text = self._tokenizer.decode(text_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _known_ids(
    tokenizer: "transformers.PreTrainedTokenizerBase", config: "transformers.PretrainedConfig", name: str
) -> list[int]:
    """The ids of one special token, the tokenizer's own first; a config may hold none, one or a list of them."""
    stated: Any = getattr(config, name, None)
    stated = stated if isinstance(stated, list) else [stated]
    ids = [getattr(tokenizer, name), *(token for token in stated if token is not None and token < config.vocab_size)]
    return [token for token in ids if token is not None and token >= 0]
