"""What a coder may ask for: selecting latents, decoding them, taking rows of a matrix; and what it asks with.

A coder's objective is written once, in these verbs. `DenseOps` answers with the reference and autograd; `SparseOps`
with kernels that touch active places only, whose weight gradients never exist as matrices. Codes come as `Latents`,
dense or sparse, and an objective uses their methods without asking which.

Shape letters: B rows, D input width, E output width, F latents, P prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from panscope.types import Latents, Once


class TooDense(Exception):
    """More places are active than sparse kernels are good for: this step goes the dense way."""


@dataclass(frozen=True)
class Rows:
    """What a coder learns from in one step, in its normalised space."""

    x: Tensor
    """[B, D]."""
    y: Tensor
    """[B, E]."""
    weights: Tensor
    """[B] what the squared error of each row counts in the loss; 1/B is the mean over rows."""
    dead: Tensor | None = None
    """[F] bool, True for latents silent for the dead window; None where nobody keeps count."""
    prepared: Once = field(default_factory=Once)
    """What kernels made of x, kept for the next coder that reads the same x."""

    @classmethod
    def mean(cls, x: Tensor, y: Tensor, dead: Tensor | None = None) -> "Rows":
        """Rows that all count the same."""
        return cls(x, y, x.new_full((len(x),), 1 / len(x)), dead)


@dataclass(frozen=True)
class Encoder:
    """pre = W (x - centre) + b."""

    W: Tensor
    """[F, D]."""
    b: Tensor
    """[F]."""
    centre: Tensor | None = None
    """[D]; None where nothing is subtracted."""


@dataclass(frozen=True)
class Decoded:
    """What codes make of the targets."""

    loss: Tensor
    """[] the rows' weighted squared errors, mean over prefixes."""
    y_hat: Tensor
    """[B, E]."""
    errors: Tensor
    """[B] squared distance of y_hat from the targets, without gradient."""


class Ops(Protocol):
    """The verbs; every result carries gradients to the parameters it came from."""

    def topk(self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None) -> Latents:
        """Of each row the k largest ReLU(pre) * norms, as even codes ReLU(pre); norms [F] choose only, None is 1."""
        ...

    def batch_topk(
        self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None, guess: Tensor
    ) -> tuple[Latents, Tensor]:
        """The B k largest of the whole batch, and the least score [] kept (infinite where nothing is positive).

        `guess` [] is about that least score, from the batches before; 0 where there is none.
        """
        ...

    def above(self, encoder: Encoder, rows: Rows, floor: Tensor) -> Latents:
        """Pre-activations: at least every place where they exceed floor [F], without gradient."""
        ...

    def reconstruct(self, codes: Latents, W_dec: Tensor, base: Tensor, rows: Rows, ends: Sequence[int]) -> Decoded:
        """base + codes W_dec against the targets; base [E] or [B, E].

        The loss is the mean over `ends` of the reconstructions by that many first latents alone.
        """
        ...

    def norms(self, W_dec: Tensor) -> Tensor:
        """[F] the norm of each row."""
        ...

    def take(self, W: Tensor, index: Tensor) -> Tensor:
        """The rows of W [F, D] at index [n]."""
        ...
