"""A tokenizer of single words and texts of numbered words, so that every token says where it came from."""

import re

from panscope.data.documents import DataConfig


class WordTokenizer:
    """One token a word: the number the word is, plus 10; `<s>`, `</s>` and `<pad>` are special."""

    def __init__(self, bos_id: int | None = 1, eos_id: int | None = 2):
        self.bos_id, self.eos_id = bos_id, eos_id
        self.special_ids = frozenset(i for i in (bos_id, eos_id, 3) if i is not None)
        self.longest_call = 0
        self.longest_text = 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.longest_call = max(self.longest_call, len(texts))
        self.longest_text = max([self.longest_text, *map(len, texts)])
        return [[3 if word == "<pad>" else int(word) + 10 for word in text.split()] for text in texts]

    def encode_with_ends(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        ends = [[match.end() for match in re.finditer(r"\S+", text)] for text in texts]
        return list(zip(self.encode(texts), ends, strict=True))


def words(lengths: list[int]) -> list[str]:
    """Documents of so many words; no word occurs twice."""
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [" ".join(str(first + k) for k in range(n)) for first, n in zip(firsts, lengths, strict=True)]


def config(**fields: object) -> DataConfig:
    return DataConfig.read({"text": ("x.jsonl",), "context": 8, "sequences": 3, "held_out": 0.3} | fields, "data")
