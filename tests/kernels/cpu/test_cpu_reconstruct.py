"""Decoding and its gradients on the CPU against autograd in float64.

Shape letters: B rows, E output width, F latents, N entries, P prefixes.
"""

from dataclasses import dataclass

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels.backend import Entries, Reconstruction
from tests.support.cpu_oracle import PROPERTY, draw, kernels

RELATIVE = 2e-5
"""Tolerance relative to the largest term of a sum: float32 sums of up to a hundred terms."""


@dataclass(frozen=True)
class Batch:
    codes: Entries
    W_dec: Tensor
    base: Tensor
    y: Tensor
    weights: Tensor
    ends: tuple[int, ...]

    def reconstruct(self, threads: int = 1) -> Reconstruction:
        return kernels(threads=threads).reconstruct(self.codes, self.W_dec, self.base, self.y, self.weights, self.ends)


@st.composite
def batches(draw_: st.DrawFn) -> Batch:
    B, E, F = draw_(st.integers(0, 9)), draw_(st.integers(1, 40)), draw_(st.integers(1, 30))
    ends = draw_(st.sets(st.integers(1, F), max_size=3).map(lambda some: (*sorted(some - {F}), F)))
    counts = torch.tensor(draw_(st.lists(st.integers(0, 9), min_size=B, max_size=B)), dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    N, seed = int(starts[-1]), draw_(st.integers(0, 999))
    latents = torch.randint(F, (N,), generator=torch.Generator().manual_seed(seed))
    values = draw("with zeros", seed + 1, N, 1).flatten()
    base = draw("normal", seed + 2, *((B, E) if draw_(st.booleans()) else (E,)))
    weights = draw("normal", seed + 5, B).abs()
    return Batch(
        Entries(values, latents, starts),
        draw("normal", seed + 3, F, E),
        base,
        draw("normal", seed + 4, B, E),
        weights,
        ends,
    )


def by_autograd(batch: Batch) -> Reconstruction:
    """The definition, with a leaf for each quantity whose gradient is tested."""
    values = batch.codes.values.double().requires_grad_()
    added = torch.zeros(len(batch.ends), *batch.y.shape, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(len(batch.y)).repeat_interleave(batch.codes.starts.diff())
    terms = values[:, None] * batch.W_dec.double()[batch.codes.latents]
    y_hat, loss, start = batch.base.double().expand(batch.y.shape), torch.zeros((), dtype=torch.float64), 0
    errors = torch.zeros(len(batch.y), dtype=torch.float64)
    for p, end in enumerate(batch.ends):
        inside = (batch.codes.latents >= start) & (batch.codes.latents < end)
        y_hat = y_hat.index_add(0, rows[inside], terms[inside]) + added[p]
        errors = (y_hat - batch.y).square().sum(dim=1)
        loss = loss + (batch.weights * errors).sum() / len(batch.ends)
        start = end
    loss.backward()
    assert values.grad is not None
    assert added.grad is not None
    return Reconstruction(loss.detach(), y_hat.detach(), errors.detach(), values.grad, added.grad.flatten(0, 1))


def compare(found: Reconstruction, expected: Reconstruction) -> None:
    for name in ("loss", "y_hat", "errors", "slopes", "pull"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == torch.float32
        assert one.shape == other.shape
        size = float(other.abs().max()) if other.numel() else 0.0
        assert (one.double() - other).abs().le(RELATIVE * max(1.0, size)).all(), name


@given(batches(), st.sampled_from([1, 2]))
@PROPERTY
def test_against_autograd(batch: Batch, threads: int) -> None:
    """Entries in any order, some twice, some 0; base a vector or a matrix; one to four prefixes."""
    compare(batch.reconstruct(threads), by_autograd(batch))


def test_many_rows_and_entries() -> None:
    B, E, F = 200, 65, 90
    codes = Entries(draw("normal", 0, B * 12), torch.randint(F, (B * 12,)), torch.arange(0, B * 12 + 1, 12))
    batch = Batch(
        codes, draw("normal", 1, F, E), draw("normal", 2, E), draw("normal", 3, B, E), torch.ones(B) / B, (F,)
    )
    compare(batch.reconstruct(2), by_autograd(batch))


def test_what_is_zero_adds_nothing_and_has_a_slope() -> None:
    """JumpReLU's window needs the gradient of an entry that is 0; its decoder row does not contribute."""
    W_dec = torch.tensor([[1.0, 2.0], [torch.nan, 1.0]])
    codes = Entries(torch.tensor([0.0, 0.0]), torch.tensor([0, 1]), torch.tensor([0, 2]))
    batch = Batch(codes, W_dec, torch.zeros(2), torch.tensor([[1.0, 1.0]]), torch.ones(1), (2,))
    found = batch.reconstruct()
    assert found.y_hat.tolist() == [[0, 0]]
    assert found.loss == 2
    assert found.slopes[0] == -6


def test_nan_stays_in_its_row() -> None:
    codes = Entries(torch.ones(3), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 3]))
    y = draw("normal", 0, 3, 7)
    batch = Batch(codes, draw("normal", 1, 3, 7), torch.zeros(7), y, torch.ones(3), (2, 3))
    before = batch.reconstruct()
    y[1, 4] = torch.nan
    after = batch.reconstruct()
    assert after.loss.isnan()
    assert after.errors.isnan().tolist() == [False, True, False]
    assert after.slopes[[0, 2]].equal(before.slopes[[0, 2]])
    assert after.pull[[0, 2, 3, 5]].equal(before.pull[[0, 2, 3, 5]])


def test_the_loss_of_many_rows_is_summed_in_float64() -> None:
    """One row with 2^24 times the error of each of 10000 others, which a float32 sum would lose."""
    y = torch.ones(10_001, 1)
    y[0] = 2.0**12.5
    none = Entries(torch.empty(0), torch.empty(0, dtype=torch.int64), torch.zeros(10_002, dtype=torch.int64))
    batch = Batch(none, torch.ones(1, 1), torch.zeros(1), y, torch.ones(10_001), (1,))
    assert batch.reconstruct(2).loss == float(y.double().square().sum().float())
