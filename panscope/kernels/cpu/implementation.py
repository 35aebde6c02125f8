"""The class that the rest of Panscope sees; each method is a file of this package."""

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
from panscope.kernels.cpu.update import squared_norm, update

_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names, in torch's account of a CPU, of the instructions that multiply bfloat16 faster than float32."""
_ENOUGH = 3
"""Pieces of work a thread from which on whole pieces are dealt to threads: the last ones leave some of them idle."""


class CpuKernels:
    """Numba's loops and torch's products on `threads` threads, by default as many as torch uses.

    `screen_dtype` is torch.bfloat16 or torch.float32; None takes bfloat16 where the CPU has instructions for it. It is
    a matter of speed alone: the results are the same but for which of two equal scores comes first.
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
        """What it runs on, in one phrase."""
        precision, threads = str(self.screen_dtype).removeprefix("torch."), self._threads.count
        return f"Numba {numba.__version__}, screens in {precision}, {threads} thread{'s' * (threads > 1)}"

    def parallel_for(self, work: Callable[[int], None], count: int) -> None:
        """With few pieces one after another, so that all threads work on each."""
        deal = self._threads.run if count >= _ENOUGH * self._threads.count else self._threads.alone
        deal(work, count)

    def rows(self, x: Tensor, centre: Tensor | None) -> InputRows:
        """x - centre: x [B, D] of any floating dtype, centre [D] or None."""
        return input_rows(self._threads, self.screen_dtype, x, centre)

    def screen(self, W_enc: Tensor) -> Screen:
        """The screen of an encoder [F, D]."""
        return encoder_screen(self._threads, self.screen_dtype, W_enc)

    def topk(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, k: int, norms: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Exact pre-activations and latents, [B, K], of the k largest relu(pre) * norms of each row; else 0, 0."""
        return topk(self._threads, self._buffers, ScreenQuery(rows, W_enc, b_enc, screen, scale=norms), k)

    def above(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
    ) -> Entries | None:
        """Every place with pre-activation > floor [F], with its exact pre-activation; None if over `capacity`."""
        return above(self._threads, self._buffers, ScreenQuery(rows, W_enc, b_enc, screen, floor=floor), capacity)

    def reconstruct(
        self, codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
    ) -> Reconstruction:
        """Decode by prefixes of `ends` latents, W_dec [F, E], base [E] or [B, E], targets y [B, E], weights [B]."""
        return reconstruct(self._threads, codes, W_dec, base, y, weights, ends)

    def group(self, latents: Tensor, width: int) -> Grouped:
        """Entries [N] by latent."""
        return group(latents, width)

    def squared_norm(self, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
        """[] float64 the sum of squares of a gradient, as `update` would see it before `scale`."""
        return squared_norm(self._threads, self._buffers, W, gradient, project)

    def update(self, W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, adam: AdamStep, finish: Finish) -> None:
        """One step of torch's Adam on every row of W [F, D] with moments m, v, in place."""
        update(self._threads, self._buffers, W, m, v, gradient, adam, finish)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32, and torch knows how to."""
    has = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(has.get(name, False) for name in _FAST_BFLOAT16)
