"""BatchTopK's selection and the gate against loops in plain Python floats, values and gradients.

Shape letters: B rows, F latents.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.kernels import reference

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def largest(pre: Tensor, count: int, weights: list[float]) -> tuple[dict[tuple[int, int], float], float]:
    """The positions and pre-activations of the `count` largest positive scores, by a sort, and the least score kept."""
    scores = {
        (b, f): value * weights[f] for b, row in enumerate(pre.tolist()) for f, value in enumerate(row) if value > 0
    }
    kept = sorted((place for place in scores if scores[place] > 0), key=lambda place: -scores[place])[:count]
    least = min((scores[place] for place in kept), default=math.inf)
    return {(b, f): float(pre[b, f]) for b, f in kept}, least


@given(SHAPES, st.integers(1, 9), st.sampled_from([-9.0, -1.0, 0.0, 2.0]), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=150)
def test_batch_topk_against_a_sort(shape: tuple[int, int], k: int, shift: float, seed: int, weighted: bool) -> None:
    """With k above the width, with none positive (all shifted by -9), and with fewer positive than k."""
    pre = (draw(seed, *shape) + shift).requires_grad_()
    weights = draw(seed + 1, shape[1]).abs() + 0.1 if weighted else None
    codes, least = reference.batch_topk(pre, k * shape[0], weights)
    expected, smallest = largest(pre.detach(), k * shape[0], [1.0] * shape[1] if weights is None else weights.tolist())
    found = {(b, f): value for b, row in enumerate(codes.tolist()) for f, value in enumerate(row) if value != 0}
    assert found == expected
    assert least.item() == smallest
    up = draw(seed + 2, *shape)
    codes.backward(up)
    assert pre.grad is not None
    for b in range(shape[0]):
        for f in range(shape[1]):
            assert pre.grad[b, f] == (up[b, f] if (b, f) in expected else 0)


@given(SHAPES, st.integers(1, 3), st.integers(0, 99))
@settings(deadline=None, max_examples=80)
def test_ties_are_broken_somehow_and_the_number_kept_is_right(shape: tuple[int, int], k: int, seed: int) -> None:
    """Integers from -2 to 2: any of the tied codes may be kept, but their number and values are determined."""
    pre = draw(seed, *shape).mul(1.5).round().clamp(-2, 2)
    codes, least = reference.batch_topk(pre, k * shape[0])
    ranked = sorted((value for value in pre.flatten().tolist() if value > 0), reverse=True)[: k * shape[0]]
    assert sorted(codes[codes > 0].tolist(), reverse=True) == ranked
    assert ((codes == 0) | (codes == pre)).all()
    assert least.item() == (ranked[-1] if ranked else math.inf)


def test_rows_share_the_places() -> None:
    """Two rows, one code each on average: both are in the first row; a weight of 10 moves one to the second."""
    pre = torch.tensor([[3.0, 2.0], [1.0, -1.0]])
    codes, least = reference.batch_topk(pre, len(pre))
    assert (codes.tolist(), least.item()) == ([[3.0, 2.0], [0.0, 0.0]], 2.0)
    codes, least = reference.batch_topk(pre, 2, torch.tensor([10.0, 1.0]))
    assert (codes.tolist(), least.item()) == ([[3.0, 0.0], [1.0, 0.0]], 10.0)


def test_a_latent_of_weight_zero_takes_no_place() -> None:
    codes, least = reference.batch_topk(torch.tensor([[4.0, 2.0, -1.0]]), 2, torch.tensor([0.0, 1.0, 1.0]))
    assert (codes.tolist(), least.item()) == ([[0.0, 2.0, 0.0]], 2.0)


@given(SHAPES, st.integers(0, 99))
@settings(deadline=None, max_examples=80)
def test_gated_against_loops(shape: tuple[int, int], seed: int) -> None:
    """The value and the four gradients: H passes none, the magnitude is exp(r) (pre - b_gate) + b_mag."""
    pre, b_gate, r, b_mag = (draw(seed + n, *size) for n, size in enumerate((shape, shape[1:], shape[1:], shape[1:])))
    up = draw(seed + 4, *shape)
    given_to = [tensor.clone().requires_grad_() for tensor in (pre, b_gate, r, b_mag)]
    found = reference.gated(*given_to)
    found.backward(up)
    value, slopes = torch.zeros(shape).double(), [torch.zeros_like(tensor) for tensor in given_to]
    for b in range(shape[0]):
        for f in range(shape[1]):
            inside = float(pre[b, f] - b_gate[f])
            size, g = math.exp(r[f]) * inside + float(b_mag[f]), float(up[b, f])
            if pre[b, f] > 0 and size > 0:
                value[b, f] = size
                slopes[0][b, f] = g * math.exp(r[f])
                slopes[1][f] -= g * math.exp(r[f])
                slopes[2][f] += g * math.exp(r[f]) * inside
                slopes[3][f] += g
    torch.testing.assert_close(found.detach(), value, rtol=1e-12, atol=1e-12)
    for tensor, expected in zip(given_to, slopes, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-12, atol=1e-12)


def test_the_gate_is_strict_and_the_size_is_never_negative() -> None:
    """Gates 0, 1, 1 with magnitudes 5, -1, 0: all codes are 0."""
    pre, b_gate = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([-1.0, 0.0, 0.0])
    codes = reference.gated(pre, b_gate, torch.zeros(3), torch.tensor([4.0, -2.0, -1.0]))
    assert codes.tolist() == [[0.0, 0.0, 0.0]]


def test_a_gate_that_equals_its_size_is_relu() -> None:
    pre, bias = draw(0, 4, 5), draw(1, 5)
    codes = reference.gated(pre, bias, torch.zeros(5).double(), bias)
    assert torch.allclose(codes, pre.relu(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_is_kept(dtype: torch.dtype) -> None:
    pre, bias = torch.randn(3, 4, dtype=dtype), torch.randn(4, dtype=dtype)
    codes, least = reference.batch_topk(pre, len(pre))
    assert codes.dtype == least.dtype == reference.gated(pre, bias, bias, bias).dtype == dtype
