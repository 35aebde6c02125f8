"""The reference operations against loops in plain Python floats, values and gradients.

Everything is float64, so that the two sides differ only by the order of a few additions (1e-12 relative).
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels import reference

Shape = tuple[int, int]
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6))


def close(found: Tensor | None, expected: Tensor) -> bool:
    """Equal up to the rounding of a few float64 additions."""
    assert found is not None
    return torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(SHAPES, st.integers(1, 4), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_preactivations_and_decode_against_loops(shape: Shape, other: int, seed: int) -> None:
    rows, latents = shape
    x, W_enc, b_enc = draw(seed, rows, other), draw(seed + 1, latents, other), draw(seed + 2, latents)
    codes, W_dec, b_dec = draw(seed + 3, rows, latents), draw(seed + 4, latents, other), draw(seed + 5, other)
    pre, y = torch.zeros(rows, latents).double(), torch.zeros(rows, other).double()
    for b in range(rows):
        for f in range(latents):
            pre[b, f] = math.fsum([*(float(W_enc[f, d] * x[b, d]) for d in range(other)), float(b_enc[f])])
        for e in range(other):
            y[b, e] = math.fsum([*(float(codes[b, f] * W_dec[f, e]) for f in range(latents)), float(b_dec[e])])
    assert close(reference.preactivations(x, W_enc, b_enc), pre)
    assert close(reference.decode(codes, W_dec, b_dec), y)


def jumprelu_by_loops(pre: Tensor, theta: Tensor, eps: float, up: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(JumpReLU, its gradient for pre, its gradient for theta, gradient of the step for theta) under `up`."""
    value, for_pre = torch.zeros_like(pre), torch.zeros_like(pre)
    for_theta, step_theta = torch.zeros_like(theta), torch.zeros_like(theta)
    for b in range(pre.shape[0]):
        for f in range(pre.shape[1]):
            z, t, g = float(pre[b, f]), float(theta[f]), float(up[b, f])
            if z > t:
                value[b, f], for_pre[b, f] = z, g
            u = (z - t) / eps
            if -0.5 < u < 0.5:
                for_theta[f] += -(t / eps) * g
                step_theta[f] += -(1 / eps) * g
    return value, for_pre, for_theta, step_theta


@given(SHAPES, st.sampled_from([0.01, 0.5, 2.0]), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_jumprelu_and_step_against_loops(shape: Shape, eps: float, seed: int) -> None:
    rows, latents = shape
    theta = draw(seed, latents).abs() + 0.01
    pre = draw(seed + 1, rows, latents)
    pre[0] = theta + eps / 4  # inside the window for every bandwidth
    up = draw(seed + 2, rows, latents)
    value, for_pre, for_theta, step_theta = jumprelu_by_loops(pre, theta, eps, up)

    z, t = pre.clone().requires_grad_(), theta.clone().requires_grad_()
    found = reference.jumprelu(z, t, eps)
    found.backward(up)
    assert found.equal(value)
    assert z.grad is not None
    assert z.grad.equal(for_pre)
    assert close(t.grad, for_theta)

    z, t = pre.clone().requires_grad_(), theta.clone().requires_grad_()
    found = reference.step(z, t, eps)
    found.backward(up)
    assert found.equal((value != 0).double())
    assert z.grad is None
    assert close(t.grad, step_theta)


def test_both_edges_are_strict() -> None:
    """Exact binary fractions: at the threshold the code is 0, at the window's edge the gradient is 0."""
    pre = torch.tensor([[1.0], [1.25], [0.75], [1.125], [0.875], [2.0]])
    for operation, inside in ((reference.jumprelu, -1.0 / 0.5), (reference.step, -1 / 0.5)):
        theta = torch.tensor([1.0], requires_grad=True)
        out = operation(pre, theta, 0.5)
        assert (out > 0).flatten().tolist() == [False, True, False, True, False, True]
        per_row = [torch.autograd.grad(out[b, 0], theta, retain_graph=True)[0].item() for b in range(6)]
        assert per_row == [inside, 0.0, 0.0, inside, inside, 0.0]


def test_the_threshold_gradient_carries_the_threshold() -> None:
    """JumpReLU's gradient is theta times that of the step: 3 and 1 over the bandwidth here."""
    for operation, expected in ((reference.jumprelu, -6.0), (reference.step, -2.0)):
        theta = torch.tensor([3.0], requires_grad=True)
        operation(torch.tensor([[3.0625]]), theta, 0.5).sum().backward()
        assert theta.grad is not None
        assert theta.grad.tolist() == [expected]


def test_the_straight_through_estimate_points_where_the_mean_really_goes() -> None:
    """Averaged over many rows the estimate is the derivative of the expectation: for z uniform on [0, 4],
    d E[H(z - t)] / dt = -1/4 and d E[z H(z - t)] / dt = -t/4."""
    z = (torch.arange(400_000, dtype=torch.float64)[:, None] + 0.5) / 100_000
    for operation, slope in ((reference.step, -0.25), (reference.jumprelu, -0.25 * 1.5)):
        theta = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
        operation(z, theta, 0.2).mean().backward()
        assert theta.grad is not None
        # The window contains 20 000 grid points, up to one at each edge.
        assert theta.grad.item() == pytest.approx(slope, rel=2 / 20_000)


def topk_by_sort(pre: Tensor, k: int, weights: Tensor) -> list[dict[int, float]]:
    """The positive latents that are selected in each row, by a sort of ReLU(pre) * weights."""
    kept = []
    for row in pre.tolist():
        order = sorted(range(len(row)), key=lambda f: -max(row[f], 0.0) * float(weights[f]))
        kept.append({f: row[f] for f in order[:k] if row[f] > 0})
    return kept


@given(SHAPES, st.data(), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=80)
def test_topk_against_a_sort(shape: Shape, data: st.DataObject, seed: int, weighted: bool) -> None:
    rows, latents = shape
    k = data.draw(st.integers(1, latents))
    pre = draw(seed, rows, latents) + data.draw(st.sampled_from([-2.0, 0.0, 2.0]))
    weights = draw(seed + 1, latents).abs() + 0.1
    values, indices = reference.topk(pre, k, weights if weighted else None)
    assert values.shape == indices.shape == (rows, k)
    expected = topk_by_sort(pre, k, weights if weighted else torch.ones(latents))
    for b in range(rows):
        places, codes = indices[b].tolist(), values[b].tolist()
        assert len(set(places)) == k
        assert min(codes) >= 0
        assert {f: v for f, v in zip(places, codes, strict=True) if v > 0} == expected[b]


def test_weights_choose_but_do_not_scale() -> None:
    pre = torch.tensor([[3.0, 2.0, 1.0]])
    values, indices = reference.topk(pre, 1, torch.tensor([1.0, 1.0, 10.0]))
    assert (values.tolist(), indices.tolist()) == ([[1.0]], [[2]])


def test_rows_with_fewer_than_k_positive_carry_zeros() -> None:
    values, indices = reference.topk(torch.tensor([[-1.0, 5.0, -3.0], [-1.0, -1.0, -1.0]]), 2)
    assert sorted(values[0].tolist()) == [0.0, 5.0]
    assert indices[0][values[0] > 0].tolist() == [1]
    assert values[1].tolist() == [0.0, 0.0]


def test_a_latent_of_weight_zero_is_never_active() -> None:
    """Its score is 0, so it may be used as padding, and padding is 0."""
    values, indices = reference.topk(torch.tensor([[4.0, 2.0, -1.0]]), 2, torch.tensor([0.0, 1.0, 1.0]))
    active = indices[values > 0].tolist()
    assert active == [1]


def test_topk_of_the_whole_width_is_relu() -> None:
    pre = draw(3, 4, 6)
    values, indices = reference.topk(pre, 6)
    assert torch.zeros_like(pre).scatter(1, indices, values).equal(pre.clamp(min=0))


def test_topk_passes_gradients_to_the_kept_and_positive_only() -> None:
    pre = torch.tensor([[3.0, 2.0, 1.0, -1.0], [0.5, -1.0, -2.0, -3.0]], requires_grad=True)
    reference.topk(pre, 2)[0].sum().backward()
    assert pre.grad is not None
    assert pre.grad.tolist() == [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
