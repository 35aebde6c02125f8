"""A Hugging Face tokenizer for the text pipeline: token ids without special tokens, and which ids are special."""

import json
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
import xxhash

from panscope.storage.atomic import checksum
from panscope.types import UserError


class HfTokenizer:
    """Implements `panscope.types.Tokenizer`; special ids come from the tokenizer and from the model's config.

    Config ids outside the model's vocabulary are ignored: small models' configs often inherit them from larger models.
    """

    def __init__(
        self, tokenizer: "transformers.PreTrainedTokenizerBase", config: "transformers.PretrainedConfig"
    ) -> None:
        self._tokenizer = tokenizer
        bos, eos, pad = (
            _special_ids(tokenizer, config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        )
        self._bos_id = bos[0] if bos else None
        self._eos_id = eos[0] if eos else None
        self._closing_ids = frozenset([*bos, *eos])
        self._special_ids = frozenset([*tokenizer.all_special_ids, *bos, *eos, *pad])

    def checksum(self) -> str:
        """16 hex digits of all that token ids depend on: vocabulary, merges, normaliser, pre-tokeniser, added tokens,
        and which ids are special."""
        special = [self._bos_id, self._eos_id, sorted(self._closing_ids), sorted(self._special_ids)]
        rules = _fast_rules(self._tokenizer) if self._tokenizer.is_fast else _slow_rules(self._tokenizer)
        return xxhash.xxh3_64_hexdigest(json.dumps([special, rules], sort_keys=True).encode())

    @property
    def bos_id(self) -> int | None:
        """The token that begins a document, or None if the model has none."""
        return self._bos_id

    @property
    def eos_id(self) -> int | None:
        """The token that ends a document, or None if the model has none."""
        return self._eos_id

    @property
    def closing_ids(self) -> frozenset[int]:
        """Every token that ends a document: all EOS tokens, and BOS, which begins another document."""
        return self._closing_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Every id that is not text, including `unk` if there is one."""
        return self._special_ids

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without added special tokens or a length limit."""
        if not texts:
            return []
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]

    def encode_with_ends(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """As `encode`, and the character offset at which each token ends.

        Raises UserError if the tokenizer does not provide offsets.
        """
        if not texts:
            return []
        if not self._tokenizer.is_fast:
            raise UserError(
                f"data.chat needs the character offsets of tokens, which this model's tokenizer "
                f"{type(self._tokenizer).__name__} does not provide: give a model with a tokenizer.json"
            )
        encoded = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        ends = [list(accumulate((end for _, end in spans), max)) for spans in encoded["offset_mapping"]]
        return list(zip(encoded["input_ids"], ends, strict=True))

    def decode_after(self, before: list[int], tokens: list[int]) -> str:
        """The text that `tokens` add to the text of `before`; special tokens add none.

        Many tokenizers decode the first token of a text without its leading space, so `tokens` cannot be decoded alone.
        """
        start, whole = self._decode(before), self._decode(before + tokens)
        if not whole.startswith(start):
            raise UserError(
                f"the tokenizer {type(self._tokenizer).__name__} of this model decodes {start[-20:]!r} differently if "
                "more follows, so the start of the response is not known: end the prompts with a whole word"
            )
        return whole[len(start) :]

    def _decode(self, tokens: list[int]) -> str:
        # `skip_special_tokens` is not enough: some special ids come from the config, not from the tokenizer.
        text_tokens = [token for token in tokens if token not in self._special_ids]
        text = self._tokenizer.decode(text_tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _fast_rules(tokenizer: Any) -> dict[str, Any]:
    """The content of tokenizer.json; truncation and padding are set by each call."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}


def _slow_rules(tokenizer: "transformers.PreTrainedTokenizerBase") -> dict[str, Any]:
    """The class of a tokenizer without tokenizer.json, its added tokens, and the checksums of its own files."""
    with TemporaryDirectory() as folder:
        files = [checksum(Path(file)) for file in tokenizer.save_vocabulary(folder)]
    added = {str(number): repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    return {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "added": added, "files": files}


def _special_ids(
    tokenizer: "transformers.PreTrainedTokenizerBase", config: "transformers.PretrainedConfig", name: str
) -> list[int]:
    """The ids of one special token, the tokenizer's own first; a config may have none, one or a list of them."""
    in_config: Any = getattr(config, name, None)
    in_config = in_config if isinstance(in_config, list) else [in_config]
    ids = [getattr(tokenizer, name), *(token for token in in_config if token is not None and token < config.vocab_size)]
    return [token for token in ids if token is not None and token >= 0]
