"""Tokenising no more of a long document than its sequence needs: a book of 400,000 characters may give 256 tokens.

The first tokens of a text are those of its head, if the head goes on well past them: no tokenizer in use lets text
change tokens that are a whole context earlier.
"""

from panscope.types import Tokenizer

HEAD_CHARACTERS = 16
"""Characters of a head for each token needed: about four times the characters of a token of English."""


def encode_heads(tokenizer: Tokenizer, texts: list[str], needed: int | None) -> list[list[int]]:
    """Token ids of each text, of which the first `needed` are right (all if None); the rest may be missing."""
    if needed is None:
        return tokenizer.encode(texts)
    heads = [text[: needed * HEAD_CHARACTERS] for text in texts]
    encoded = tokenizer.encode(heads)
    for i, (text, head, tokens) in enumerate(zip(texts, heads, encoded, strict=True)):
        if len(head) < len(text) and len(tokens) < 2 * needed:
            encoded[i] = tokenizer.encode([text])[0]
    return encoded
