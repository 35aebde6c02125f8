"""Matryoshka coders: BatchTopK whose first latents must reconstruct without the rest (Bussmann et al. 2025).

The nested losses themselves are `prefixes` in `base.py` and can be given to every architecture; this entry of the table
is the published combination, with the shares of SAEBench's suite.
"""

from typing import ClassVar, Literal

from panscope.coders.batchtopk import BatchTopKConfig


class MatryoshkaConfig(BatchTopKConfig):
    """A BatchTopK coder with nested prefixes."""

    default_recipe: ClassVar[str] = "saebench"

    architecture: Literal["matryoshka"] = "matryoshka"
    prefixes: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
