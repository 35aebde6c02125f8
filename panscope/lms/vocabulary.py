"""The vocabulary of a language model as vectors and text, to compare with directions in the residual stream.

Shape letters: V tokens, D width of the residual stream.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from panscope.lms.model import LanguageModel


@dataclass(frozen=True)
class Vocabulary:
    """The vectors and texts of all tokens of a model."""

    matrices: dict[str, Tensor]
    """[V, D] `embedding` and `unembedding`; only `embedding` if the two are tied."""
    texts: list[str]
    """The text of each id; empty for ids that the tokenizer does not have."""


def vocabulary(lm: LanguageModel) -> Vocabulary:
    """The vocabulary of `lm`; the matrices are not copied."""
    model: Any = lm.model
    embedding, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    matrices: dict[str, Tensor] = {"embedding": embedding.detach()}
    if unembedding.data_ptr() != embedding.data_ptr():
        matrices["unembedding"] = unembedding.detach()
    tokenizer: Any = lm.tokenizer._tokenizer
    known = len(tokenizer)
    texts = [tokenizer.decode([token]) if token < known else "" for token in range(len(embedding))]
    return Vocabulary(matrices, texts)
