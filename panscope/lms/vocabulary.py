"""A language model's tokens as vectors and as text: what a direction in the residual stream is compared with.

Shape letters: V tokens, D width of the residual stream.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from panscope.lms.model import LanguageModel


@dataclass(frozen=True)
class Vocabulary:
    """Every token of a model."""

    matrices: dict[str, Tensor]
    """[V, D] `embedding` and `unembedding`; only the first where the model uses one matrix for both."""
    texts: list[str]
    """The text of each id; empty for ids that the tokenizer does not have."""


def vocabulary(lm: LanguageModel) -> Vocabulary:
    """The tokens of `lm`; the matrices are the model's own."""
    model: Any = lm.model
    embedding, unembedding = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    matrices: dict[str, Tensor] = {"embedding": embedding.detach()}
    if unembedding.data_ptr() != embedding.data_ptr():
        matrices["unembedding"] = unembedding.detach()
    tokenizer: Any = lm.tokenizer._tokenizer
    known = len(tokenizer)
    texts = [tokenizer.decode([token]) if token < known else "" for token in range(len(embedding))]
    return Vocabulary(matrices, texts)
