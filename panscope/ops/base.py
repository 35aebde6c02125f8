"""The interface of a coder's operations: selecting latents, decoding them, taking rows of a matrix; and their operands.

A coder's objective is written once, in these operations. `DenseOps` implements them with the reference and autograd;
`SparseOps` with kernels that compute active codes only and never form weight gradients as matrices. Codes are
`Latents`, dense or sparse, and an objective uses their methods, which do not depend on the layout.

Shape letters: B rows, D input width, E output width, F latents, P prefixes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from panscope.ops.batch import BatchReductions, WholeBatch
from panscope.types import Latents, Once


class TooDense(Exception):
    """Too many codes are active for sparse kernels to be faster: compute this step with `DenseOps`."""


@dataclass(frozen=True)
class Rows:
    """The inputs and targets of one training step, or of a part of them, in the coder's normalised space."""

    x: Tensor
    """[B, D]."""
    y: Tensor
    """[B, E]."""
    weights: Tensor
    """[B] the weight of each row's squared error in the loss; for a mean, 1 over the rows of the whole batch."""
    dead: Tensor | None = None
    """[F] bool, True for latents that have not fired for the dead window; None if that is not tracked."""
    prepared: Once = field(default_factory=Once)
    """The kernels' representation of x, cached for other coders that read the same x."""
    batch: BatchReductions = field(default_factory=WholeBatch)
    """Quantities of the whole batch, of which these rows may be a part."""

    @classmethod
    def mean(cls, x: Tensor, y: Tensor, dead: Tensor | None = None) -> "Rows":
        """Rows of equal weight."""
        return cls(x, y, x.new_full((len(x),), 1 / len(x)), dead)


@dataclass(frozen=True)
class Encoder:
    """pre = W (x - centre) + b."""

    W: Tensor
    """[F, D]."""
    b: Tensor
    """[F]."""
    centre: Tensor | None = None
    """[D]; None if nothing is subtracted."""


@dataclass(frozen=True)
class Decoded:
    """The reconstruction of a batch and its errors."""

    loss: Tensor
    """[] the weighted sum of the rows' squared errors, averaged over prefixes."""
    y_hat: Tensor
    """[B, E]."""
    errors: Tensor
    """[B] squared distance of y_hat from the targets, without gradient."""


class Ops(Protocol):
    """The operations; results are differentiable with respect to the parameters unless stated otherwise."""

    def topk(self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None) -> Latents:
        """The codes ReLU(pre) with the k largest ReLU(pre) * norms of each row; k per row.

        `norms` [F] affect the selection only; None is 1.
        """
        ...

    def batch_topk(
        self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None, guess: Tensor
    ) -> tuple[Latents, Tensor]:
        """The codes with the B k largest scores of the whole batch, and the least score [] kept (infinite if none is
        positive).

        `guess` [] is an estimate of that least score from earlier batches; 0 if there is none.
        """
        ...

    def above(self, encoder: Encoder, rows: Rows, floor: Tensor) -> Latents:
        """Pre-activations, including at least all that exceed floor [F], which receives no gradient."""
        ...

    def reconstruct(self, codes: Latents, W_dec: Tensor, base: Tensor, rows: Rows, ends: Sequence[int]) -> Decoded:
        """The reconstruction base + codes W_dec and its error from the targets; base [E] or [B, E].

        For each of `ends`, the first that many latents alone make a reconstruction; the loss is averaged over these.
        """
        ...

    def norms(self, W_dec: Tensor) -> Tensor:
        """[F] the norm of each row."""
        ...

    def take(self, W: Tensor, index: Tensor) -> Tensor:
        """The rows of W [F, D] at index [n]."""
        ...
