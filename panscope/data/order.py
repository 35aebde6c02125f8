"""Random number generators that need no saved state: each is determined by a seed and stream numbers."""

import numpy as np


def generator(seed: int, *stream: int) -> np.random.Generator:
    """A generator determined by `seed` and `stream`, which are non-negative integers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))
