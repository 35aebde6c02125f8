"""The kernels for GPUs, in Triton; cuBLAS computes the one dense product.

`TritonKernels` implements `backend.Kernels` for CUDA tensors, and for CPU tensors if TRITON_INTERPRET=1 was set before
triton was imported. The files:

    rows         a batch or an encoder in the screen's precision, which is `half`
    product      the screening product, in chunks; bound: the error bound of its scores
    topk         groups -> kth -> gather -> rescore -> (scan) -> arrange -> choose
    above        groups -> find -> rescore -> keep
    reconstruct  reconstructions, errors and their gradients
    group        entries by latent
    gradient     one row of a gradient; used by sums and update

All arithmetic is float32: values in half precision are widened when they are loaded. Sums have a fixed order and there
are no atomic operations, so results are deterministic.

Shape letters: B rows, D width of a matrix (input or output), E output width, F latents, K codes per row, N entries.
"""

from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

from panscope.kernels.backend import (
    AdamStep,
    Entries,
    Finish,
    Gradient,
    Grouped,
    InputRows,
    Reconstruction,
    Screen,
)
from panscope.kernels.triton import above, group, reconstruct, rows, sums, topk, update


class TritonKernels:
    """`Kernels` for GPUs, with a screen in float16 (see `half`)."""

    name = "triton"
    description = f"Triton {triton.__version__}, float16 screens"

    def parallel_for(self, work: Callable[[int], None], count: int) -> None:
        """Call work(0) ... work(count - 1) one after the other: each occupies the GPU."""
        for number in range(count):
            work(number)

    @torch.no_grad()
    def rows(self, x: Tensor, centre: Tensor | None) -> InputRows:
        """x - centre, its float16 copy and norms; a contiguous float32 x without centre is not copied."""
        with torch.cuda.device_of(x):
            return rows.rows(x, centre)

    @torch.no_grad()
    def screen(self, W_enc: Tensor) -> Screen:
        """The screen of an encoder [F, D]."""
        with torch.cuda.device_of(W_enc):
            return rows.screen(W_enc)

    @torch.no_grad()
    def topk(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, k: int, norms: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Exact pre-activations and latents [B, K]; does not synchronise with the device."""
        with torch.cuda.device_of(W_enc):
            return topk.topk(rows, W_enc, b_enc, screen, k, norms, topk.list_capacity(k))

    @torch.no_grad()
    def above(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
    ) -> Entries | None:
        """All entries above their floor; usually synchronises with the device once, for the number of entries."""
        with torch.cuda.device_of(W_enc):
            return above.above(rows, W_enc, b_enc, screen, floor, capacity)

    @torch.no_grad()
    def reconstruct(
        self, codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
    ) -> Reconstruction:
        """Decode prefixes and differentiate the loss."""
        with torch.cuda.device_of(W_dec):
            return reconstruct.reconstruct(codes, W_dec, base, y, weights, ends)

    @torch.no_grad()
    def group(self, latents: Tensor, width: int) -> Grouped:
        """Group entries by latent."""
        with torch.cuda.device_of(latents):
            return group.group(latents, width)

    @torch.no_grad()
    def add_gradient(self, W: Tensor, gradient: Gradient, total: Tensor) -> None:
        """Add a gradient of W to `total`, in place."""
        with torch.cuda.device_of(W):
            sums.add_gradient(W, gradient, total)

    @torch.no_grad()
    def squared_norm(self, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
        """[] float64 the sum of squares of a gradient, after projection."""
        with torch.cuda.device_of(W):
            return sums.squared_norm(W, gradient, project)

    @torch.no_grad()
    def update(self, W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, adam: AdamStep, finish: Finish) -> None:
        """One Adam step, in place."""
        with torch.cuda.device_of(W):
            update.update(W, m, v, gradient, adam, finish)


def build(device: torch.device) -> TritonKernels:
    """The kernels for one GPU, or for Triton's interpreter if `device` is the CPU."""
    assert device.type in ("cuda", "cpu"), f"Triton's kernels do not run on {device}"
    return TritonKernels()
