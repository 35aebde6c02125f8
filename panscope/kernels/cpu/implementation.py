"""`CpuKernels`, the interface of this package; each method is implemented in a file of its own."""

from collections.abc import Callable, Sequence

import numba
import torch
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
from panscope.kernels.cpu.above import above
from panscope.kernels.cpu.arrays import Buffers
from panscope.kernels.cpu.group import group
from panscope.kernels.cpu.product import ScreenQuery
from panscope.kernels.cpu.reconstruct import reconstruct
from panscope.kernels.cpu.rows import encoder_screen, input_rows
from panscope.kernels.cpu.threads import Threads
from panscope.kernels.cpu.topk import topk
from panscope.kernels.cpu.update import add_gradient, squared_norm, update

_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""CPU capabilities, as torch names them, of instructions that multiply bfloat16 faster than float32."""
_TASKS_PER_THREAD = 3
"""Least number of tasks per thread at which tasks run in parallel: with fewer, threads would be idle at the end."""


class CpuKernels:
    """`Kernels` for CPUs with `threads` threads, by default as many as torch uses.

    `screen_dtype` is torch.bfloat16 or torch.float32; None is bfloat16 if the CPU has instructions for it. It affects
    speed alone: the results are the same except for which of two equal scores comes first.
    """

    name = "cpu"

    def __init__(self, screen_dtype: torch.dtype | None = None, threads: int | None = None) -> None:
        if screen_dtype is None:
            screen_dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
        assert screen_dtype in (torch.bfloat16, torch.float32)
        self.screen_dtype = screen_dtype
        self._threads = Threads(threads)
        self._buffers = Buffers()

    @property
    def description(self) -> str:
        """The version of Numba, the screen's precision and the number of threads, in one phrase."""
        precision, threads = str(self.screen_dtype).removeprefix("torch."), self._threads.count
        return f"Numba {numba.__version__}, screens in {precision}, {threads} thread{'s' * (threads > 1)}"

    def parallel_for(self, work: Callable[[int], None], count: int) -> None:
        """See `Kernels`; a few tasks run one after another, so that all threads work on each."""
        is_parallel = count >= _TASKS_PER_THREAD * self._threads.count
        run = self._threads.run if is_parallel else self._threads.run_serially
        run(work, count)

    def rows(self, x: Tensor, centre: Tensor | None) -> InputRows:
        """x - centre: x [B, D] of any floating dtype, centre [D] or None."""
        return input_rows(self._threads, self.screen_dtype, x, centre)

    def screen(self, W_enc: Tensor) -> Screen:
        """The screen of an encoder [F, D]."""
        return encoder_screen(self._threads, self.screen_dtype, W_enc)

    def topk(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, k: int, norms: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Exact pre-activations and latents, [B, K], of the k largest relu(pre) * norms of each row; padded with 0."""
        return topk(self._threads, self._buffers, ScreenQuery(rows, W_enc, b_enc, screen, scale=norms), k)

    def above(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
    ) -> Entries | None:
        """All entries with pre-activation > floor [F], with exact pre-activations; None if more than `capacity`."""
        return above(self._threads, self._buffers, ScreenQuery(rows, W_enc, b_enc, screen, floor=floor), capacity)

    def reconstruct(
        self, codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
    ) -> Reconstruction:
        """Decode prefixes of `ends` latents: W_dec [F, E], base [E] or [B, E], targets y [B, E], weights [B]."""
        return reconstruct(self._threads, codes, W_dec, base, y, weights, ends)

    def group(self, latents: Tensor, width: int) -> Grouped:
        """Group entries with these latents [N] by latent."""
        return group(latents, width)

    def add_gradient(self, W: Tensor, gradient: Gradient, total: Tensor) -> None:
        """Add a gradient of W [F, D] to `total` [F, D], in place."""
        add_gradient(self._threads, self._buffers, W, gradient, total)

    def squared_norm(self, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
        """[] float64 the sum of squares of a gradient, after projection and before `AdamStep.scale`."""
        return squared_norm(self._threads, self._buffers, W, gradient, project)

    def update(self, W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, adam: AdamStep, finish: Finish) -> None:
        """One step of torch's Adam on every row of W [F, D] with moments m, v, in place."""
        update(self._threads, self._buffers, W, m, v, gradient, adam, finish)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32 and torch supports it."""
    has = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(has.get(name, False) for name in _FAST_BFLOAT16)
