"""Grouping, gradients by latent and Adam on the CPU against dense torch, in float64 where rounding matters.

Shape letters: D width, F rows of the matrix (latents), N entries, M rows of a source.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.backend import AdamStep, Contribution, Finish, Gradient
from panscope.kernels.cpu import CpuKernels
from tests.support.cpu_oracle import DTYPES, PROPERTY, draw, kernels

YES, ONE = torch.tensor(True), torch.tensor(1.0)


def adam(step: int = 1, **changes: Any) -> AdamStep:
    return replace(AdamStep(1e-2, 0.9, 0.999, 1e-8, step, ONE, YES), **changes)


@given(st.lists(st.integers(0, 20), max_size=200), st.integers(21, 40))
@PROPERTY
def test_group_is_a_stable_sort(numbers: list[int], width: int) -> None:
    latents = torch.tensor(numbers, dtype=torch.int64)
    grouped = kernels().group(latents, width)
    assert grouped.order.equal(latents.argsort(stable=True))
    assert grouped.starts.diff().equal(latents.bincount(minlength=width))
    assert grouped.starts[0] == 0


@dataclass(frozen=True)
class Problem:
    W: Tensor
    gradient: Gradient

    def dense(self) -> Tensor:
        """[F, D] float64: the whole gradient."""
        W, given_ = self.W.double(), self.gradient
        total = torch.zeros_like(W)
        if given_.contribution is not None:
            part = given_.contribution
            latents = torch.empty_like(part.places)
            latents[part.grouped.order] = torch.arange(len(W)).repeat_interleave(part.grouped.starts.diff())
            total.index_add_(0, latents, part.coefficients[:, None].double() * part.source.double()[part.places])
        if given_.radial is not None:
            total += given_.radial[:, None] * W
        if given_.extra is not None and given_.extra_index is not None:
            has = given_.extra_index >= 0
            total[has] += given_.extra.double()[given_.extra_index[has]]
        return total

    def projected(self) -> Tensor:
        """The gradient without its component along each row of W, by the formula."""
        W, g = self.W.double(), self.dense()
        return g - (g * W).sum(dim=1, keepdim=True) * W


@st.composite
def problems(draw_: st.DrawFn) -> Problem:
    """Latents of very uneven frequency: most are never active, one possibly always."""
    F, D, N, M = (draw_(st.integers(low, most)) for low, most in ((1, 30), (1, 50), (0, 60), (1, 9)))
    parts, seed = draw_(st.sets(st.sampled_from(["contribution", "radial", "extra"]))), draw_(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    latents = (torch.rand(N, generator=generator) ** 4 * F).long()
    places = torch.randint(M, (N,), generator=generator)
    contribution = Contribution(
        draw("normal", seed, N), draw("normal", seed + 1, M, D), places, kernels().group(latents, F)
    )
    index = torch.where(torch.rand(F, generator=generator) < 0.5, -1, torch.randint(3, (F,), generator=generator))
    gradient = Gradient(
        contribution if "contribution" in parts else None,
        draw("normal", seed + 2, F) if "radial" in parts else None,
        index if "extra" in parts else None,
        draw("normal", seed + 3, 3, D) if "extra" in parts else None,
    )
    return Problem(torch.nn.functional.normalize(draw("normal", seed + 4, F, D), dim=1), gradient)


def close(found: Tensor, expected: Tensor, relative: float = 2e-5) -> bool:
    """Equal up to rounding, relative to the largest number."""
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return bool((found.double() - expected).abs().le(relative * size).all())


def updated(W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, step: AdamStep) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of all three after a step, with the same strides."""
    W, m, v = (each.clone() for each in (W, m, v))
    kernels().update(W, m, v, gradient, step, Finish())
    return W, m, v


def first_step(problem: Problem, finish: Finish, **changes: Any) -> Tensor:
    """The gradient that the update computes: the first step of Adam with beta1 = 0."""
    W, m, v = problem.W.clone(), torch.zeros_like(problem.W), torch.zeros_like(problem.W)
    kernels(threads=2).update(W, m, v, problem.gradient, adam(beta1=0.0, **changes), finish)
    return m


@given(problems(), st.booleans(), st.sampled_from([1.0, 0.25]))
@PROPERTY
def test_gradients_against_dense_ones(problem: Problem, project: bool, scale: float) -> None:
    """Every part alone and together with the others; the squared norm is that of the unscaled gradient."""
    expected = problem.projected() if project else problem.dense()
    assert close(first_step(problem, Finish(project=project), scale=torch.tensor(scale)), expected * scale)
    square = kernels(threads=2).squared_norm(problem.W, problem.gradient, project)
    assert square.dtype == torch.float64
    assert close(square, expected.square().sum())


@given(problems())
@PROPERTY
def test_a_gradient_is_added_to_a_sum(problem: Problem) -> None:
    before = draw("normal", 7, *problem.W.shape)
    total = before.clone()
    kernels(threads=2).add_gradient(problem.W, problem.gradient, total)
    assert close(total, before.double() + problem.dense())


@pytest.mark.parametrize(("beta1", "beta2", "eps"), [(0.9, 0.999, 1e-8), (0.0, 0.999, 1e-8), (0.5, 0.9, 6.25e-10)])
def test_fifty_steps_of_torchs_adam(beta1: float, beta2: float, eps: float) -> None:
    """Gradients over twelve orders of magnitude, for rows that have one in some steps and rows that never have one."""
    F, D = 40, 17
    ours = draw("normal", 0, F, D)
    theirs = torch.nn.Parameter(ours.clone())
    start = ours.clone()
    optimiser = torch.optim.Adam([theirs], lr=1e-2, betas=(beta1, beta2), eps=eps)
    m, v = torch.zeros_like(ours), torch.zeros_like(ours)
    sizes = 10 ** torch.linspace(-9, 3, F)[:, None]
    for step in range(1, 51):
        dense = draw("normal", step, F, D) * sizes
        index = torch.arange(F)
        index[(index % 4 == 3) | ((index % 4 == 2) & (step % 7 != 0))] = -1
        theirs.grad = torch.where(index[:, None] >= 0, dense, 0)
        optimiser.step()
        kernels().update(
            ours,
            m,
            v,
            Gradient(extra_index=index, extra=dense),
            adam(step, beta1=beta1, beta2=beta2, eps=eps),
            Finish(),
        )
    state = optimiser.state[theirs]
    # Each step rounds to one part in 2^24 of the moments' largest terms, and of the weights.
    for found, expected in ((m, state["exp_avg"]), (v, state["exp_avg_sq"])):
        largest = expected.abs().amax(dim=1, keepdim=True)
        assert ((found - expected).abs() <= 50 * 2.0**-24 * largest).all()
    assert ((ours - theirs.detach()).abs() <= 50 * 2.0**-23 * start.abs().clamp(min=0.5)).all()
    assert ours[3::4].equal(start[3::4])


def test_a_row_without_gradient_decays_as_with_a_gradient_of_zero() -> None:
    """Bit for bit; the row moves, because its first moment is not 0 yet."""
    W = draw("normal", 0, 8, 9)
    m, v = draw("normal", 1, 8, 9), draw("normal", 2, 8, 9).abs()
    zero = Gradient(extra_index=torch.arange(8), extra=torch.zeros(8, 9))
    without, with_zero = (updated(W, m, v, gradient, adam(7)) for gradient in (Gradient(), zero))
    for one, other in zip(without, with_zero, strict=True):
        assert one.equal(other)
    assert not (without[0] == W).any()
    assert torch.allclose(without[1], m * 0.9, rtol=1e-6)
    assert torch.allclose(without[2], v * 0.999, rtol=1e-6)


def everything(kernel: CpuKernels, ok: bool) -> list[Tensor]:
    """All outputs of an update with every part of the gradient and every option."""
    F, D = 70, 33
    W = torch.nn.functional.normalize(draw("normal", 0, F, D), dim=1) * 2
    m, v, norms = draw("normal", 1, F, D), draw("normal", 2, F, D).abs(), torch.full((F,), -1.0)
    screen = kernel.screen(W)
    latents = torch.randint(F, (500,), generator=torch.Generator().manual_seed(0))
    places = torch.arange(500) % 20
    contribution = Contribution(draw("normal", 3, 500), draw("normal", 4, 20, D), places, kernel.group(latents, F))
    gradient = Gradient(contribution, radial=draw("normal", 5, F))
    step = adam(3, ok=torch.tensor(ok))
    kernel.update(W, m, v, gradient, step, Finish(project=True, unit=True, screen=screen, norms=norms))
    return [W, m, v, norms, screen.low.clone(), screen.size, screen.lost]


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_ok_changes_nothing_at_all(dtype: torch.dtype) -> None:
    changed, kept = everything(kernels(dtype), True), everything(kernels(dtype), False)
    W = torch.nn.functional.normalize(draw("normal", 0, 70, 33), dim=1) * 2
    screen = kernels(dtype).screen(W)
    before = [W, draw("normal", 1, 70, 33), draw("normal", 2, 70, 33).abs(), torch.full((70,), -1.0)]
    for found, expected in zip(kept, [*before, screen.low, screen.size, screen.lost], strict=True):
        assert found.equal(expected)
    assert not any(one.equal(other) for one, other in zip(changed[:4], kept[:4], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("unit", [True, False])
def test_the_screen_and_norms_follow_bit_for_bit(dtype: torch.dtype, unit: bool) -> None:
    kernel = kernels(dtype, 2)
    W, norms = draw("normal", 0, 301, 65), torch.empty(301)
    m, v, screen = torch.zeros_like(W), torch.zeros_like(W), kernel.screen(W)
    for step in range(1, 4):
        gradient = Gradient(extra_index=torch.arange(301), extra=draw("normal", step, 301, 65))
        kernel.update(W, m, v, gradient, adam(step), Finish(unit=unit, screen=screen, norms=norms))
        fresh = kernel.screen(W)
        assert screen.low.equal(fresh.low)
        assert screen.size.equal(fresh.size)
        assert screen.lost.equal(fresh.lost)
        assert norms.equal(fresh.size)
        assert torch.allclose(norms.double(), W.double().norm(dim=1), rtol=2.0**-22)
        if unit:
            assert torch.allclose(norms, torch.ones(301), rtol=2.0**-22)


def test_unit_rows_of_every_size() -> None:
    """Norms whose squares are out of the range of float32, a row of zeros, and one too small to be scaled to norm 1."""
    W = draw("normal", 0, 5, 30) * torch.tensor([[1e30], [1e-30], [1.0], [0.0], [1e-42]])
    none = torch.zeros_like(W)
    kernels().update(W, none, none.clone(), Gradient(), adam(), Finish(unit=True))
    assert torch.allclose(W[:3].norm(dim=1), torch.ones(3), rtol=2.0**-22)
    assert (W[3] == 0).all()
    assert W[4].isfinite().all()


def test_a_projected_gradient_has_nothing_along_the_row() -> None:
    problem = Problem(
        torch.nn.functional.normalize(draw("normal", 0, 6, 40), dim=1),
        Gradient(extra_index=torch.arange(6), extra=draw("large mean", 1, 6, 40)),
    )
    along = (first_step(problem, Finish(project=True)).double() * problem.W).sum(dim=1)
    assert (along.abs() < 1e-6 * problem.dense().norm(dim=1)).all()


def test_strided_matrices_are_updated_in_place() -> None:
    gradient = Gradient(extra_index=torch.arange(5), extra=draw("normal", 3, 5, 7))
    plain, strided = torch.zeros(5, 7), torch.zeros(7, 5).T
    W = draw("normal", 0, 5, 7)
    expected = updated(W, plain, plain, gradient, adam())
    found = updated(W.T.contiguous().T, strided, strided, gradient, adam())
    assert not any(each.is_contiguous() for each in found)
    for one, other in zip(expected, found, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_that_ask_for_gradients(dtype: torch.dtype) -> None:
    W = torch.nn.Parameter(draw("normal", 0, 5, 7))
    m, v, screen = torch.zeros(5, 7), torch.zeros(5, 7), kernels(dtype).screen(W)
    gradient = Gradient(radial=torch.ones(5))
    kernels(dtype).update(W, m, v, gradient, adam(), Finish(screen=screen))
    assert not W.equal(draw("normal", 0, 5, 7))
    assert screen.low.equal(W.to(dtype))
    assert kernels(dtype).squared_norm(W, gradient, False).item() == pytest.approx(W.double().square().sum().item())
