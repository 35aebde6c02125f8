"""Tokenisation of only the head of a long document: a book of 400,000 characters may be used for 256 tokens.

The first tokens of the head are those of the whole text if the head is sufficiently longer than them: no tokenizer in
use lets later text change tokens that are a whole context earlier.
"""

from panscope.types import Tokenizer

HEAD_CHARACTERS = 16
"""Number of characters in a head per needed token: about four times the length of an English token."""


def encode_heads(tokenizer: Tokenizer, texts: list[str], needed: int | None) -> list[list[int]]:
    """Token ids of each text, of which the first `needed` are correct (all if None) and others may be missing."""
    if needed is None:
        return tokenizer.encode(texts)
    heads = [text[: needed * HEAD_CHARACTERS] for text in texts]
    encoded = tokenizer.encode(heads)
    for i, (text, head, tokens) in enumerate(zip(texts, heads, encoded, strict=True)):
        if len(head) < len(text) and len(tokens) < 2 * needed:
            encoded[i] = tokenizer.encode([text])[0]
    return encoded
