"""A Hugging Face tokenizer as the text pipeline wants it: ids without special tokens, and which ids are special."""

import json
from typing import Any

import transformers
import xxhash


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
    def special_ids(self) -> frozenset[int]:
        """Every id that is not text; `unk` is among them where there is one."""
        return self._special_ids

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with no special token added and no length limit."""
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]


def _known_ids(
    tokenizer: "transformers.PreTrainedTokenizerBase", config: "transformers.PretrainedConfig", name: str
) -> list[int]:
    """The ids of one special token, the tokenizer's own first; a config may hold none, one or a list of them."""
    stated: Any = getattr(config, name, None)
    stated = stated if isinstance(stated, list) else [stated]
    ids = [getattr(tokenizer, name), *(token for token in stated if token is not None and token < config.vocab_size)]
    return [token for token in ids if token is not None and token >= 0]
