"""What a training step asks of a machine: the parts of a sparse step, each implemented for the CPU and for GPUs.

The one dense product of a step, rows times encoder, runs in half precision (bfloat16 on a CPU, scaled float16 on a GPU)
and only screens: it finds candidates, with a bound on its error. Exact float32 pre-activations of the candidates
decide. Everything after touches active places alone, and weight gradients are formed latent by latent inside the
update, so that no [F, D] gradient is ever in memory.

Shape letters: B rows, D width of a matrix (input or output), E output width, F latents, K codes a row, N entries
(places of a batch where a latent is active, row after row), M rows of a source, P prefixes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class InputRows:
    """The rows an encoder reads, in full and in the precision that screens."""

    x: Tensor
    """[B, D] float32."""
    low: Tensor
    """[B, D] in the kernels' own half precision; where the screen is float32, `x` itself."""
    size: Tensor
    """[B] the norm of each row of x."""
    lost: Tensor
    """[B] the norm of x - low."""


@dataclass(frozen=True)
class Screen:
    """An encoder in the precision that screens, and what its rounding can cost; follows W_enc from update to update."""

    low: Tensor
    """[F, D] as `InputRows.low`; where the screen is float32, W_enc itself."""
    size: Tensor
    """[F] the norm of each row of W_enc."""
    lost: Tensor
    """[F] the norm of W_enc - low."""


@dataclass(frozen=True)
class Entries:
    """Places of a batch, row after row: those of row b are `starts[b]` to `starts[b + 1]` - 1."""

    values: Tensor
    """[N] float32: pre-activations or codes."""
    latents: Tensor
    """[N] int64."""
    starts: Tensor
    """[B + 1] int64."""


@dataclass(frozen=True)
class Grouped:
    """The same places latent by latent: the entries of latent f are `order[starts[f]:starts[f + 1]]`, rising."""

    starts: Tensor
    """[F + 1] int64."""
    order: Tensor
    """[N] int64."""


@dataclass(frozen=True)
class Contribution:
    """The gradient of a matrix [F, D] as a sum: each entry adds coefficient * source[place] to its latent's row."""

    coefficients: Tensor
    """[N] float32."""
    source: Tensor
    """[M, D] float32."""
    places: Tensor
    """[N] int64, rows of `source`."""
    grouped: Grouped


@dataclass(frozen=True)
class Gradient:
    """The whole gradient of a matrix W [F, D]; each part may be missing."""

    contribution: Contribution | None = None
    radial: Tensor | None = None
    """[F]: adds radial[f] * W[f]."""
    extra_index: Tensor | None = None
    """[F] int64: adds extra[extra_index[f]] where that is not -1."""
    extra: Tensor | None = None
    """[n, D] float32."""


@dataclass(frozen=True)
class AdamStep:
    """One step of Adam."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    step: int
    """Counts from 1."""
    scale: Tensor
    """[] float32: multiplies every gradient."""
    ok: Tensor
    """[] bool: False leaves weights and moments as they are."""


@dataclass(frozen=True)
class Finish:
    """What an update does to a row of W before and after Adam."""

    project: bool = False
    """Before: take out the part of the gradient along the row."""
    unit: bool = False
    """After: bring the row back to norm 1."""
    screen: Screen | None = None
    """After: keep this screen true."""
    norms: Tensor | None = None
    """After: write the row's norm into this [F]."""


@dataclass(frozen=True)
class Reconstruction:
    """What the codes of a batch make of its targets, and what that says to codes and decoder."""

    loss: Tensor
    """[] float32: the rows' weighted squared errors, mean over prefixes."""
    y_hat: Tensor
    """[B, E]."""
    errors: Tensor
    """[B] squared distance of y_hat from the target."""
    slopes: Tensor
    """[N] the derivative of the loss for each entry's value."""
    pull: Tensor
    """[P B, E]: row p B + b is the derivative of the loss for what prefix p adds to row b; the first B rows are the
    derivative for the base."""


class Kernels(Protocol):
    """One machine's implementation. Tensors lie on its device; results are new, but for what `update` changes."""

    @property
    def name(self) -> str:
        """One word."""
        ...

    @property
    def description(self) -> str:
        """What it runs on, in one phrase: library, precision of the screen, threads."""
        ...

    def side_by_side(self, work: Callable[[int], None], count: int) -> None:
        """Call work(0) ... work(count - 1), which do not depend on each other: at once, where that is faster."""
        ...

    def rows(self, x: Tensor, centre: Tensor | None) -> InputRows:
        """x - centre: x [B, D] of any floating dtype, centre [D] or None."""
        ...

    def screen(self, W_enc: Tensor) -> Screen:
        """The screen of an encoder [F, D]."""
        ...

    def topk(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, k: int, norms: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Exact pre-activations [B, K] and latents [B, K] of the k largest relu(pre) * norms of each row.

        Places a row cannot fill with positive pre-activations are (0, latent 0); a row with NaN fills none.
        """
        ...

    def above(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
    ) -> Entries | None:
        """Every place with pre-activation > floor [F], with its exact pre-activation; None if over `capacity`."""
        ...

    def reconstruct(
        self, codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
    ) -> Reconstruction:
        """Decode by prefixes of `ends` latents, W_dec [F, E], base [E] or [B, E], targets y [B, E], weights [B]."""
        ...

    def group(self, latents: Tensor, width: int) -> Grouped:
        """Entries [N] by latent."""
        ...

    def squared_norm(self, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
        """[] float64 the sum of squares of a gradient, as `update` would see it before `scale`."""
        ...

    def update(self, W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, adam: AdamStep, finish: Finish) -> None:
        """One step of torch's Adam on every row of W [F, D] with moments m, v, in place."""
        ...
