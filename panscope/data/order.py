"""Seeded random numbers that need no saved state: they depend on a seed and on the number of what they are for."""

import numpy as np


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers that are a function of `seed` and the numbers of the stream, none of them negative."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *stream])))
