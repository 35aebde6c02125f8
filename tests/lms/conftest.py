"""Every family's tiny model, those with trained weights, and tokens for them."""

from tests.support.tiny_models import llama, lm, make_lm, save_tiny, tokens

__all__ = ["llama", "lm", "make_lm", "save_tiny", "tokens"]
