"""Gradient norms and updates against float64 and against torch's own Adam.

Shape letters: F latents, D width of the matrix, N entries, M rows of a source.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.kernels.backend import AdamStep, Finish, Gradient
from tests.support.triton_oracle import contribution, dense, rounded, unscaled

F, D, M = 7, 37, 5


def weights(unit: bool = True) -> Tensor:
    W = torch.randn(F, D)
    return W / W.norm(dim=1, keepdim=True) if unit else W


def gradient(parts: str = "sre", entries: int = 23) -> Gradient:
    """A gradient with the named parts: entries, most of latent 2 and none of latent 3; radial; extra."""
    latents = torch.randint(0, F, (entries,))
    latents[::2] = 2
    latents[latents == 3] = 4
    summed = contribution(latents, torch.randn(entries), torch.randn(M, D), torch.randint(0, M, (entries,)), F)
    index = torch.tensor([-1, 1, -1, 0, -1, -1, 2])
    return Gradient(
        summed if "s" in parts else None,
        torch.randn(F) if "r" in parts else None,
        index if "e" in parts else None,
        torch.randn(3, D) if "e" in parts else None,
    )


def step(number: int = 1, scale: float = 1.0, ok: bool = True) -> AdamStep:
    return AdamStep(0.03, 0.9, 0.99, 1e-8, number, torch.tensor(scale), torch.tensor(ok))


def zeros() -> tuple[Tensor, Tensor]:
    return torch.zeros(F, D), torch.zeros(F, D)


@pytest.mark.parametrize("parts", ["", "s", "r", "e", "sre"])
@pytest.mark.parametrize("project", [False, True])
def test_squared_norm(kernels: Any, parts: str, project: bool) -> None:
    W, given = weights(), gradient(parts)
    found = kernels.squared_norm(W, given, project)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, dense(W, given, project).square().sum(), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("parts", ["", "s", "r", "e", "sre"])
def test_a_gradient_is_added_to_a_sum(kernels: Any, parts: str) -> None:
    W, given, total = weights(), gradient(parts), torch.randn(F, D)
    expected = total.double() + dense(W, given, False)
    kernels.add_gradient(W, given, total)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_update_is_torch_adam_on_the_dense_gradient(kernels: Any, project: bool, unit: bool) -> None:
    """Four steps with different scaled gradients; latent 3 has a gradient in the first only, but moves in all."""
    W, (m, v) = weights(unit), zeros()
    other = torch.nn.Parameter(W.double())
    adam = torch.optim.Adam([other], lr=0.03, betas=(0.9, 0.99), eps=1e-8)
    for number in range(1, 5):
        given = gradient("sre" if number == 1 else "s")
        other.grad = 0.7 * dense(other.data, given, project)
        adam.step()
        if unit:
            with torch.no_grad():
                other /= other.norm(dim=1, keepdim=True)
        kernels.update(W, m, v, given, step(number, 0.7), Finish(project, unit))
        torch.testing.assert_close(W.double(), other.data, rtol=1e-5, atol=1e-6)
    state = adam.state[other]
    torch.testing.assert_close(m.double(), state["exp_avg"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(v.double(), state["exp_avg_sq"], rtol=1e-5, atol=1e-7)


def test_the_screen_and_the_norms_follow(kernels: Any) -> None:
    W, (m, v) = weights(unit=False), zeros()
    screen, norms = kernels.screen(W), torch.zeros(F)
    kernels.update(W, m, v, gradient(), step(), Finish(screen=screen, norms=norms))
    fresh = kernels.screen(W)
    assert torch.equal(unscaled(screen.low, screen.size), rounded(W, screen.size))
    assert torch.equal(screen.low, fresh.low)
    torch.testing.assert_close(screen.size, fresh.size, rtol=1e-6, atol=0)
    torch.testing.assert_close(screen.lost, fresh.lost, rtol=1e-6, atol=0)
    torch.testing.assert_close(norms.double(), W.double().norm(dim=1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("wide", [False, True])
def test_a_step_that_is_not_ok_changes_nothing(
    kernels: Any, part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    if wide:
        monkeypatch.setattr(part("update"), "WIDEST", 16)
    W, m, v = weights(unit=False), torch.rand(F, D), torch.rand(F, D)
    screen, norms = kernels.screen(W), torch.zeros(F)
    kept = [tensor.clone() for tensor in (W, m, v, screen.low, screen.size, screen.lost, norms)]
    kernels.update(W, m, v, gradient(), step(scale=math.nan, ok=False), Finish(True, True, screen, norms))
    for before, after in zip(kept, (W, m, v, screen.low, screen.size, screen.lost, norms), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("unit", [False, True])
def test_rows_wider_than_a_program_keeps(
    kernels: Any, part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, unit: bool
) -> None:
    """Wide rows, processed in blocks, give the same results."""
    start, given, results = weights(), gradient(), []
    for widest in (8192, 16):
        monkeypatch.setattr(part("update"), "WIDEST", widest)
        monkeypatch.setattr(part("sums"), "_BLOCK", widest)
        W, (m, v), norms = start.clone(), zeros(), torch.zeros(F)
        screen = kernels.screen(W)
        kernels.update(W, m, v, given, step(), Finish(True, unit, screen, norms))
        square, total = kernels.squared_norm(start, given, True), torch.zeros(F, D)
        kernels.add_gradient(start, given, total)
        results.append((W, m, v, screen.size, screen.lost, norms, square, total))
        assert torch.equal(unscaled(screen.low, screen.size), rounded(W, screen.size))
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(whole, blocks, rtol=1e-5, atol=1e-6)


def test_a_latent_that_is_active_everywhere(
    kernels: Any, part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entries are summed in stretches; with stretches of 4, most of the 40 entries."""
    module = part("gradient")
    W, given = weights(), gradient("s", 40)
    expected = dense(W, given, True).square().sum()
    for most in (4096, 3):
        monkeypatch.setattr(module, "_MIN_STRETCH", 4)
        monkeypatch.setattr(module, "_MAX_STRETCHES", most)
        torch.testing.assert_close(kernels.squared_norm(W, given, True), expected, rtol=1e-5, atol=0)
        prepared = module.parts(W, given)
        assert 1 << prepared.shift == (4 if most == 4096 else 16)
        assert len(prepared.sums) == 40 >> prepared.shift


def test_stretches_are_summed_only_within_one_latent(
    part: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part("gradient"), "_MIN_STRETCH", 8)
    latents = torch.tensor([0] * 3 + [1] * 20 + [2] * 9)
    given = contribution(latents, torch.randn(32), torch.randn(M, D), torch.randint(0, M, (32,)), F)
    sums = part("gradient").parts(weights(), Gradient(given)).sums
    rows = given.coefficients[:, None] * given.source[given.places]
    torch.testing.assert_close(sums[1], rows[8:16].sum(dim=0))
    torch.testing.assert_close(sums[3], rows[24:].sum(dim=0))


def test_a_latent_at_zero_stays_there(kernels: Any) -> None:
    """Unit norm of a row of zeros; with eps 0, 0 / 0 occurs beyond a row's end only."""
    W, (m, v) = torch.zeros(F, D), zeros()
    kernels.update(W, m, v, Gradient(), step(), Finish(unit=True))
    assert not W.any()
    W, (m, v) = weights(), zeros()
    adam = AdamStep(0.1, 0.0, 0.9, 0.0, 1, torch.tensor(1.0), torch.tensor(True))
    kernels.update(W, m, v, Gradient(radial=torch.ones(F)), adam, Finish(unit=True))
    torch.testing.assert_close(W.norm(dim=1), torch.ones(F))


def test_entries_without_any(kernels: Any) -> None:
    none = contribution(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.randn(M, D), torch.empty(0).long(), F)
    assert kernels.squared_norm(weights(), Gradient(none), True) == 0


def test_the_same_input_gives_the_same_bits(kernels: Any) -> None:
    start, given, results = weights(), gradient("sre", 60), []
    for _ in range(2):
        W, (m, v) = start.clone(), zeros()
        kernels.update(W, m, v, given, step(), Finish(True, True))
        results.append((W, m, v))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
