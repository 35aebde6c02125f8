"""The reconstruction losses as row weights, against their definitions in float64, one number at a time.

Shape letters: B rows of a layer, S layers stacked, E width.
"""

import math

import pytest
import torch
from torch import Tensor

from panscope.training.losses import Loss, row_weights

S, B, E = 3, 7, 5
LOSSES: tuple[Loss, ...] = ("squared_error", "fvu", "fvu_scalar", "batch_normed")


def layers_of(y: Tensor, stacks: int) -> list[list[list[float]]]:
    """Numbers by layer, row and dimension."""
    each = len(y) // stacks
    return [y[n * each : (n + 1) * each].double().tolist() for n in range(stacks)]


def brute(loss: Loss, y: Tensor, y_hat: Tensor, stacks: int) -> float:
    """The loss of one batch, spelt out from its paper."""
    total, layers = 0.0, list(zip(layers_of(y, stacks), layers_of(y_hat, stacks), strict=True))
    for rows, made in layers:
        errors = [sum((a - b) ** 2 for a, b in zip(r, m, strict=True)) for r, m in zip(rows, made, strict=True)]
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        distances = [sum((a - b) ** 2 for a, b in zip(row, mean, strict=True)) for row in rows]
        if loss == "squared_error":
            total += sum(errors) / len(rows)
        elif loss == "fvu":
            total += sum(errors) / sum(distances)
        elif loss == "fvu_scalar":  # MSE / Var, both over all numbers of the layer
            numbers = [a for row in rows for a in row]
            middle = sum(numbers) / len(numbers)
            variance = sum((a - middle) ** 2 for a in numbers) / len(numbers)
            total += sum(errors) / len(numbers) / variance
        else:  # each row's mean squared error over the distance of that row from the mean row
            shares = [e / len(mean) / math.sqrt(d) for e, d in zip(errors, distances, strict=True)]
            total += sum(shares) / len(rows)
    return total / stacks


def a_batch(stacks: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[S B, E] float32, targets of layers that differ in size and place, and something near them."""
    g = torch.Generator().manual_seed(seed)
    places = [(3.0**n) * torch.randn(B, E, generator=g) + 10 * n * torch.randn(E, generator=g) for n in range(stacks)]
    y = torch.cat(places)
    return y, y + torch.randn(y.shape, generator=g)


@pytest.mark.parametrize("stacks", [1, S])
@pytest.mark.parametrize("loss", LOSSES)
def test_weighted_squared_errors_are_the_loss(loss: Loss, stacks: int):
    y, y_hat = a_batch(stacks)
    weights = row_weights(loss, y, stacks)
    assert (weights.shape, weights.dtype) == ((len(y),), torch.float32)
    found = (weights.double() * (y_hat - y).double().square().sum(dim=1)).sum().item()
    # Weights of float32; a layer that lies ten times its size from 0 loses a digit of its variance.
    assert found == pytest.approx(brute(loss, y, y_hat, stacks), rel=1e-5)


def test_the_four_losses_differ():
    y, y_hat = a_batch(S)
    assert len({round(brute(loss, y, y_hat, S), 3) for loss in LOSSES}) == 4


@pytest.mark.parametrize("loss", ["fvu", "fvu_scalar"])
def test_every_layer_counts_the_same_whatever_its_size(loss: Loss):
    """Predicting each layer's mean gives an FVU of 1; pooled, the last layer's variance would hide the others."""
    y, _ = a_batch(S)
    layers = y.reshape(S, B, E)
    middle = layers.mean(dim=(1, 2), keepdim=True) if loss == "fvu_scalar" else layers.mean(dim=1, keepdim=True)
    weights = row_weights(loss, y, S).reshape(S, B)
    shares = (weights * (layers - middle).square().sum(dim=2)).sum(dim=1)
    assert shares.tolist() == pytest.approx([1 / S] * S, rel=1e-5)
    pooled = (row_weights(loss, y, 1).reshape(S, B) * (layers - middle).square().sum(dim=2)).sum(dim=1)
    assert float(pooled[0]) < 0.1 * float(pooled[-1])


@pytest.mark.parametrize("loss", ["fvu", "batch_normed"])
def test_a_shift_of_the_rows_changes_no_weight(loss: Loss):
    y, _ = a_batch(1)
    assert torch.allclose(row_weights(loss, y, 1), row_weights(loss, y + 4, 1), rtol=1e-5)
    assert not torch.allclose(row_weights("fvu_scalar", y, 1), row_weights("fvu_scalar", y + torch.arange(5.0), 1))


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_variance_have_finite_weights(loss: Loss, value: float):
    """One layer that never changes: its exact reconstruction costs nothing, and the other layers keep their weights."""
    y, _ = a_batch(S)
    y[:B] = value
    weights = row_weights(loss, y, S)
    assert weights.isfinite().all()
    assert float((weights * (y - y).square().sum(dim=1)).sum()) == 0
    g = torch.Generator().manual_seed(1)
    y[:B] = torch.randn(B, E, generator=g)
    assert torch.equal(weights[B:], row_weights(loss, y, S)[B:])


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_carry_no_gradient_of_the_coder_and_do_not_depend_on_the_order(loss: Loss):
    y, _ = a_batch(1)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2))
    weights = row_weights(loss, y, 1)
    assert not weights.requires_grad
    assert torch.allclose(row_weights(loss, y[order], 1), weights[order], rtol=1e-6)
