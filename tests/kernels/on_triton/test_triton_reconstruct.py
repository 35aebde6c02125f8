"""Decoding and its gradients against float64 autograd.

Shape letters: B rows, E output width, F latents, N entries, P prefixes.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.kernels.backend import Entries


def entries(counts: list[int], F: int) -> Entries:
    """Random codes, some 0, with the latents of a row in random order."""
    latents = torch.cat([torch.randperm(F)[:count] for count in counts])
    values = torch.rand(len(latents)) * (torch.rand(len(latents)) < 0.8)
    return Entries(values, latents, torch.tensor([0, *counts]).cumsum(0))


def by_autograd(
    codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: list[int]
) -> dict[str, Tensor]:
    """Loss, reconstruction, errors, and gradients for values, base and what each prefix adds."""
    rows = torch.arange(len(y)).repeat_interleave(codes.starts.diff())
    values, base = codes.values.double().requires_grad_(), base.double().requires_grad_()
    y_hat, adds, loss = base.expand(y.shape), [], torch.zeros((), dtype=torch.float64)
    first = 0
    for end in ends:
        mine = (codes.latents >= first) & (codes.latents < end)
        added = torch.zeros(y.shape, dtype=torch.float64).index_add(
            0, rows[mine], values[mine, None] * W_dec.double()[codes.latents[mine]]
        )
        added.retain_grad() if added.requires_grad else added.requires_grad_()
        adds.append(added)
        y_hat = y_hat + added
        loss = loss + (weights.double() * (y_hat - y.double()).square().sum(dim=1)).sum() / len(ends)
        first = end
    loss.backward()
    assert values.grad is not None and base.grad is not None
    pull = torch.cat([added.grad for added in adds if added.grad is not None])
    errors = (y_hat - y.double()).square().sum(dim=1)
    return {
        "loss": loss, "y_hat": y_hat, "errors": errors, "slopes": values.grad, "pull": pull, "base": base.grad
    }  # fmt: skip


@pytest.mark.parametrize("E", [1, 5, 130, 257])
@pytest.mark.parametrize("ends", [[13], [4, 13], [1, 2, 9, 13]])
@pytest.mark.parametrize("own_base", [False, True])
def test_reconstruct(kernels: Any, E: int, ends: list[int], own_base: bool) -> None:
    """One, several and no entries per row; widths just below and above a block."""
    codes = entries([5, 0, 13], 13)
    W_dec, y, weights = torch.randn(13, E), torch.randn(3, E), torch.rand(3)
    base = torch.randn(3, E) if own_base else torch.randn(E)
    found = kernels.reconstruct(codes, W_dec, base, y, weights, ends)
    expected = by_autograd(codes, W_dec, base, y, weights, ends)
    for name in ("loss", "y_hat", "errors", "slopes", "pull"):
        torch.testing.assert_close(getattr(found, name).double(), expected[name].detach(), rtol=1e-5, atol=1e-5)
    for_base = found.pull[:3] if own_base else found.pull[:3].sum(dim=0)
    torch.testing.assert_close(for_base.double(), expected["base"], rtol=1e-5, atol=1e-5)


def test_more_entries_than_are_read_together(kernels: Any) -> None:
    codes = entries([70], 80)
    W_dec, y, weights, base = torch.randn(80, 20), torch.randn(1, 20), torch.ones(1), torch.zeros(20)
    found = kernels.reconstruct(codes, W_dec, base, y, weights, [30, 80])
    expected = by_autograd(codes, W_dec, base, y, weights, [30, 80])
    for name in ("loss", "y_hat", "slopes", "pull"):
        torch.testing.assert_close(getattr(found, name).double(), expected[name].detach(), rtol=1e-5, atol=1e-5)


def test_no_entries_at_all(kernels: Any) -> None:
    codes = entries([0, 0], 3)
    y, base = torch.randn(2, 4), torch.randn(4)
    found = kernels.reconstruct(codes, torch.randn(3, 4), base, y, torch.ones(2), [3])
    assert torch.equal(found.y_hat, base.expand(2, 4))
    assert len(found.slopes) == 0
    torch.testing.assert_close(found.loss, (base - y).square().sum())


def test_no_rows(kernels: Any) -> None:
    codes = entries([0], 3)
    none = Entries(codes.values, codes.latents, codes.starts[:1])
    found = kernels.reconstruct(none, torch.randn(3, 4), torch.randn(4), torch.empty(0, 4), torch.empty(0), [3])
    assert found.loss == 0
    assert found.pull.shape == (0, 4)


def test_nan_stays_in_its_row(kernels: Any) -> None:
    codes = entries([2, 2], 6)
    codes.values[0] = float("nan")
    found = kernels.reconstruct(codes, torch.randn(6, 3), torch.zeros(3), torch.randn(2, 3), torch.ones(2), [6])
    assert found.loss.isnan()
    assert found.y_hat[0].isnan().all()
    assert found.y_hat[1].isfinite().all()
    assert found.slopes[2:].isfinite().all()
