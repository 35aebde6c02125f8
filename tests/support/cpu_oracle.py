"""What the CPU's kernels are held against: dense float64 in plain torch, and how far float32 may be from it.

Shape letters: B rows, D input width, F latents, K codes a row, N entries.
"""

from dataclasses import dataclass
from functools import cache

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.backend import Entries
from panscope.kernels.cpu import CpuKernels

DTYPES = [torch.bfloat16, torch.float32]
PROPERTY = settings(deadline=None, max_examples=120, derandomize=True)
KINDS = ["normal", "whole numbers", "large mean", "heavy tails", "huge", "tiny", "subnormal", "with zeros"]


@cache
def kernels(dtype: torch.dtype = torch.bfloat16, threads: int = 1) -> CpuKernels:
    return CpuKernels(dtype, threads)


def draw(kind: str, seed: int, *shape: int) -> Tensor:
    """Float32 of one of KINDS."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(shape, generator=generator)
    match kind:
        case "whole numbers":
            return normal.mul(1.5).round()
        case "large mean":
            return normal + 300 * torch.randn(shape[-1], generator=torch.Generator().manual_seed(7))
        case "heavy tails":
            return normal / torch.rand(shape, generator=generator).clamp(min=1e-3) ** 2
        case "huge":
            return normal * 1e30
        case "tiny":
            return normal * 1e-30
        case "subnormal":
            return normal * 1e-39
        case "with zeros":
            return normal * (torch.rand(shape[:-1], generator=generator) < 0.5)[..., None]
        case _:
            return normal


@dataclass(frozen=True)
class Case:
    """Rows [B, D] and an encoder."""

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor

    def exact(self) -> Tensor:
        """[B, F] float64 pre-activations."""
        return self.x.double() @ self.W_enc.double().T + self.b_enc.double()

    def rounding(self) -> Tensor:
        """[B, F] how far a float32 pre-activation, its products summed in any order, can be from the exact one.

        Without limit where the sum may overflow.
        """
        sizes = self.x.double().abs() @ self.W_enc.double().abs().T + self.b_enc.double().abs()
        near = (self.x.shape[1] + 2) * (2.0**-24 * sizes + 2.0**-149)
        return near.masked_fill(sizes > 3e38, torch.inf)


@st.composite
def cases(draw_: st.DrawFn, rows: int = 9, width: int = 70, latents: int = 150) -> Case:
    """Shapes that are multiples of nothing, numbers of every kind; biases that leave next to nothing of a row too."""
    B, D, F = (draw_(st.integers(1, most)) for most in (rows, width, latents))
    of_x, of_W, seed = draw_(st.sampled_from(KINDS)), draw_(st.sampled_from(KINDS)), draw_(st.integers(0, 999))
    x, W_enc, bias = draw(of_x, seed, B, D), draw(of_W, seed + 1, F, D), draw("normal", seed + 2, F)
    match draw_(st.sampled_from(["none", "usual", "large", "cancelling"])):
        case "none":
            bias = torch.zeros(F)
        case "large":
            bias *= 1000
        case "cancelling":
            bias = -(x[0].double() @ W_enc.double().T).clamp(-1e38, 1e38).float()
        case _:
            pass
    return Case(x, W_enc, bias)


def topk(kernel: CpuKernels, case: Case, k: int, norms: Tensor | None = None) -> tuple[Tensor, Tensor]:
    screen = kernel.screen(case.W_enc)
    return kernel.topk(kernel.rows(case.x, None), case.W_enc, case.b_enc, screen, k, norms)


def above(kernel: CpuKernels, case: Case, floor: Tensor, capacity: int = 10**9) -> Entries | None:
    screen = kernel.screen(case.W_enc)
    return kernel.above(kernel.rows(case.x, None), case.W_enc, case.b_enc, screen, floor, capacity)


def check_topk(found: tuple[Tensor, Tensor], case: Case, k: int, norms: Tensor | None = None) -> None:
    """The chosen are the k best wherever exact scores differ by more than rounding; pre-activations are exact."""
    values, latents = found
    assert values.shape == latents.shape == (len(case.x), k)
    scale = torch.ones(len(case.W_enc)) if norms is None else norms
    exact, near = case.exact(), case.rounding()
    score = exact.relu() * scale
    doubt = (near * scale).nan_to_num(0, torch.inf) + score * 2.0**-23 + 2.0**-149
    for b in range(len(values)):
        used = values[b] > 0
        chosen = latents[b][used]
        assert (values[b][~used] == 0).all()
        assert (latents[b][~used] == 0).all()
        assert len(chosen.unique()) == len(chosen)
        assert ((values[b][used] - exact[b, chosen]).abs() <= near[b, chosen]).all()
        left = torch.ones(len(scale), dtype=torch.bool).index_fill(0, chosen, False)
        at_least = (score[b] - doubt[b])[left]
        worst = (score[b] + doubt[b])[chosen].min() if len(chosen) == k else torch.zeros(())
        assert (at_least <= worst).all()


def check_above(found: Entries | None, case: Case, floor: Tensor) -> None:
    """Every place above its floor by more than rounding is there, none that is not above it by more than rounding."""
    assert found is not None
    rows = torch.arange(len(case.x)).repeat_interleave(found.starts.diff())
    assert found.starts[0] == 0
    assert found.starts[-1] == len(found.values) == len(found.latents)
    exact, near = case.exact(), case.rounding()
    there = torch.zeros(exact.shape, dtype=torch.bool)
    there[rows, found.latents] = True
    assert there.sum() == len(found.values)
    places = rows * len(floor) + found.latents
    assert (places.diff() > 0).all()
    assert there[exact - near > floor].all()
    assert not there[exact + near <= floor].any()
    assert ((found.values - exact[there]).abs() <= near[there]).all()
    assert (found.values > floor[found.latents]).all()
