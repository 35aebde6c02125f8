"""The interface of the kernels of a sparse training step, implemented for CPUs and GPUs.

The one dense product of a step, rows times encoder, runs in half precision (bfloat16 on a CPU, scaled float16 on a GPU)
and is only a screen: it finds candidates, with a bound on its error, and their exact float32 pre-activations decide.
All later work is on active codes alone, and weight gradients are formed latent by latent inside the update, so that no
[F, D] gradient is ever in memory.

Shape letters: B rows, D width of a matrix (input or output), E output width, F latents, K codes per row, N entries
(active codes of a batch, in row order), M rows of a source, P prefixes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class InputRows:
    """The input rows of an encoder, in float32 and in the screen's precision."""

    x: Tensor
    """[B, D] float32."""
    low: Tensor
    """[B, D] in the kernels' half precision; `x` itself if the screen is float32."""
    size: Tensor
    """[B] the norm of each row of x."""
    lost: Tensor
    """[B] the norm of x - low."""


@dataclass(frozen=True)
class Screen:
    """An encoder in the screen's precision, and bounds of its rounding error; updated together with W_enc."""

    low: Tensor
    """[F, D] as `InputRows.low`; W_enc itself if the screen is float32."""
    size: Tensor
    """[F] the norm of each row of W_enc."""
    lost: Tensor
    """[F] the norm of W_enc - low."""


@dataclass(frozen=True)
class Entries:
    """Entries of a batch in row order: those of row b are `starts[b]` to `starts[b + 1]` - 1."""

    values: Tensor
    """[N] float32: pre-activations or codes."""
    latents: Tensor
    """[N] int64."""
    starts: Tensor
    """[B + 1] int64."""


@dataclass(frozen=True)
class Grouped:
    """The same entries by latent: those of latent f are `order[starts[f]:starts[f + 1]]`, ascending."""

    starts: Tensor
    """[F + 1] int64."""
    order: Tensor
    """[N] int64."""


@dataclass(frozen=True)
class Contribution:
    """The part of a gradient [F, D] from entries: each adds coefficient * source[place] to the row of its latent."""

    coefficients: Tensor
    """[N] float32."""
    source: Tensor
    """[M, D] float32."""
    places: Tensor
    """[N] int64, indices of rows of `source`."""
    grouped: Grouped


@dataclass(frozen=True)
class Gradient:
    """The gradient of a matrix W [F, D] as a sum of parts, any of which may be missing."""

    contribution: Contribution | None = None
    radial: Tensor | None = None
    """[F]: adds radial[f] * W[f]."""
    extra_index: Tensor | None = None
    """[F] int64: adds extra[extra_index[f]] if extra_index[f] is not -1."""
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
    """[] float32: factor of every gradient, for clipping."""
    ok: Tensor
    """[] bool: if False, weights and moments are not changed."""


@dataclass(frozen=True)
class Finish:
    """What an update does to each row of W before and after the Adam step."""

    project: bool = False
    """Before: remove the component of the gradient that is parallel to the row."""
    unit: bool = False
    """After: rescale the row to norm 1."""
    screen: Screen | None = None
    """After: update this screen."""
    norms: Tensor | None = None
    """After: write the row's norm into this [F]."""


@dataclass(frozen=True)
class Reconstruction:
    """The reconstruction of a batch, its loss, and the loss's gradients for codes and decoder."""

    loss: Tensor
    """[] float32: the weighted sum of the rows' squared errors, averaged over prefixes."""
    y_hat: Tensor
    """[B, E]."""
    errors: Tensor
    """[B] squared distance of y_hat from the target."""
    slopes: Tensor
    """[N] the gradient of the loss with respect to each entry's value."""
    pull: Tensor
    """[P B, E]: row p B + b is the gradient of the loss with respect to what prefix p adds to row b; the first B rows
    are the gradient with respect to the base."""


class Kernels(Protocol):
    """The kernels of one device, on which all tensors are. Only `update` and `add_gradient` modify their arguments."""

    @property
    def name(self) -> str:
        """A name of one word."""
        ...

    @property
    def description(self) -> str:
        """The library, the screen's precision and the number of threads, in one phrase."""
        ...

    def parallel_for(self, work: Callable[[int], None], count: int) -> None:
        """Call work(0) ... work(count - 1), which are independent of each other; in parallel if that is faster."""
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

        A row with fewer than k positive pre-activations is padded with (0, latent 0); a row with NaN is all padding.
        """
        ...

    def above(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
    ) -> Entries | None:
        """All entries with pre-activation > floor [F], with exact pre-activations; None if more than `capacity`."""
        ...

    def reconstruct(
        self, codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
    ) -> Reconstruction:
        """Decode prefixes of `ends` latents and differentiate the loss.

        W_dec [F, E], base [E] or [B, E], targets y [B, E], weights [B].
        """
        ...

    def group(self, latents: Tensor, width: int) -> Grouped:
        """Group entries with these latents [N] by latent."""
        ...

    def add_gradient(self, W: Tensor, gradient: Gradient, total: Tensor) -> None:
        """Add a gradient of W [F, D] to `total` [F, D], in place."""
        ...

    def squared_norm(self, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
        """[] float64 the sum of squares of a gradient, after projection and before `AdamStep.scale`."""
        ...

    def update(self, W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, adam: AdamStep, finish: Finish) -> None:
        """One step of torch's Adam on every row of W [F, D] with moments m, v, in place."""
        ...
