"""One small case an architecture, worked out by hand: three latents, a row or two of two numbers.

Unless said otherwise W_enc = (1 0, 0 1, 1 1), W_dec = (1 0, 0 1, .6 .8), biases 0; row (2 1) has the pre-activations
(2 1 3), row (1 -2) has (1 -2 -1). err is y_hat - y; with one row, the slope of the loss for latent i is 2 err times
W_dec_i.
"""

import math
from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.base import Coder, Objective
from panscope.ops.base import Rows
from panscope.ops.dense import DenseOps

ONE, TWO = [[2.0, 1.0]], [[2.0, 1.0], [1.0, -2.0]]


def coder_of(architecture: str, sparsity: float, **fields: Any) -> Coder:
    base = {"d_in": 2, "d_out": 2, "width": 3, "sparsity": sparsity, "decoder_norm": "free"}
    prefixes = {"prefixes": (1.0,)} if architecture == "matryoshka" else {}
    coder = coders.build(coders.config_type(architecture).read(base | prefixes | fields, "test")).double()
    with torch.no_grad():
        coder.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double())
        coder.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64))
    return coder


def set_to(coder: Coder, **values: Any) -> None:
    with torch.no_grad():
        for name, value in values.items():
            coder.get_parameter(name).copy_(torch.tensor(value, dtype=torch.float64))


def step(coder: Coder, x: list[list[float]], dead: list[bool] | None = None) -> Objective:
    rows = torch.tensor(x, dtype=torch.float64)
    found = coder.objective(Rows.mean(rows, rows, torch.tensor(dead or [False] * 3)), coder.config.sparsity, DenseOps())
    found.loss.backward()
    return found


def codes(found: Objective) -> Any:
    return found.latents.dense().tolist()


def assert_gradient(coder: Coder, name: str, expected: list[float]) -> None:
    """A matrix's rows one after another."""
    found = coder.get_parameter(name).grad
    assert found is not None
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_relu() -> None:
    coder = coder_of("relu", 0.5)
    found = step(coder, ONE)
    assert codes(found) == [[2, 1, 3]]
    # y_hat = (2 + 1.8, 1 + 2.4) = (3.8 3.4), err = (1.8 2.4); 9 + 0.5 (2 + 1 + 3).
    assert found.loss.item() == pytest.approx(12)
    # Slopes 3.6, 4.8 and 2 (1.08 + 1.92) = 6, each with the penalty's 0.5.
    assert_gradient(coder, "b_enc", [4.1, 5.3, 6.5])
    assert_gradient(coder, "b_dec", [3.6, 4.8])
    # 2 err f_i, and 0.5 f_i along the vector: its norm is in the penalty.
    assert_gradient(coder, "W_dec", [7.2 + 1, 9.6, 3.6, 4.8 + 0.5, 10.8 + 0.9, 14.4 + 1.2])


def test_topk_and_multi_topk() -> None:
    coder = coder_of("topk", 1, multi_coefficient=0.125, multi_factor=2)
    found = step(coder, ONE)
    assert codes(found) == [[0, 0, 3]]
    # K = 1: err = (-.2 1.4), 2.  K = 2: latents 0 and 2, err = (1.8 1.4), 5.2 / 8 = 0.65.
    assert found.loss.item() == pytest.approx(2.65)
    # Latent 0 only by the second, 3.6 / 8; latent 2 by both, 2 (-.12 + 1.12) + 4.4 / 8.
    assert_gradient(coder, "b_enc", [0.45, 0, 2.55])


def test_topk_by_decoder_norm() -> None:
    coder = coder_of("topk", 1, selection="decoder_norm")
    set_to(coder, W_dec=[[1.0, 0.0], [0.0, 5.0], [0.6, 0.8]])
    found = step(coder, ONE)
    # Scores 2, 1 * 5 and 3; the code stays 1. err = (-2 4).
    assert codes(found) == [[0, 1, 0]]
    assert found.loss.item() == pytest.approx(20)
    assert_gradient(coder, "b_enc", [0, 40, 0])


@pytest.mark.parametrize(("legacy", "variance"), [(False, 0.1), (True, 1.64)])
def test_auxk(legacy: bool, variance: float) -> None:
    """Latent 1 is dead. Errors y - y_hat are (.2 -1.4) and (0 -2).

    Their mean is (.1 -1.7), so the variance about it is .1; the legacy one, within rows, is that of (.8 -.8) and
    (1 -1): (1.28 + 2) / 2. Latent 1 gives (0 1) and nothing: it leaves .04 + 5.76 and 4, 4.9 in the mean.
    """
    coder = coder_of("topk", 1, auxk_coefficient=variance / 4.9, auxk=1, auxk_bias=legacy)
    found = step(coder, TWO, [False, True, False])
    assert codes(found) == [[0, 0, 3], [1, 0, 0]]
    # The main loss is (2 + 4) / 2.
    assert found.loss.item() == pytest.approx(3 + 1)
    # 2 / 2 of (-.2 2.4) times the code 1, over 4.9; nothing reaches it from the main loss.
    assert coder.W_dec.grad is not None
    assert coder.W_dec.grad[1].tolist() == pytest.approx([-0.2 / 4.9, 2.4 / 4.9])
    assert coder.b_enc.grad is not None
    assert coder.b_enc.grad[1].item() == pytest.approx(2.4 / 4.9)


def test_batchtopk() -> None:
    coder = coder_of("batchtopk", 1)
    found = step(coder, TWO)
    # Two for the batch: 3 and 2, both of the first row.
    assert codes(found) == [[2, 0, 3], [0, 0, 0]]
    # err = (1.8 1.4) and (-1 2): (5.2 + 5) / 2.
    assert found.loss.item() == pytest.approx(5.1)
    assert found.least is not None
    assert found.least.item() == 2
    # 2 * 1.8 / 2 and 2 (1.08 + 1.12) / 2.
    assert_gradient(coder, "b_enc", [1.8, 0, 2.2])


def test_matryoshka() -> None:
    coder = coder_of("matryoshka", 1, prefixes=(1 / 3, 1.0))
    found = step(coder, TWO)
    assert codes(found) == [[2, 0, 3], [0, 0, 0]]
    # Latent 0 alone leaves (0 -1) and (-1 2): 3. All: 5.1 as above.
    assert found.loss.item() == pytest.approx(4.05)
    assert found.y_hat.flatten().tolist() == pytest.approx([3.8, 2.4, 0, 0])
    # Half of the above: alone, latent 0 is already where it should be.
    assert_gradient(coder, "b_enc", [0.9, 0, 1.1])


@pytest.mark.parametrize(
    ("fields", "penalty", "slopes"),
    [
        # L0 = 2.
        ({}, 2.0, (1.0, 1.0, 1.0)),
        # (2 - 2.9)^2 = .81, slope 2 (2 - 2.9).
        ({"target_l0": 2.9, "target_factor": 2.9**2}, 0.81, (-1.8, -1.8, -1.8)),
        # Frequencies 1 0 1: 2 + .25 (1 + 1) / .5, slope 1 + .25 * 2 * p / .5.
        ({"frequency_penalty": 0.25, "frequency_limit": 0.5}, 3.0, (2.0, 1.0, 2.0)),
    ],
    ids=["linear", "target", "frequency"],
)
def test_jumprelu(fields: dict[str, Any], penalty: float, slopes: tuple[float, float, float]) -> None:
    """Bandwidth 1, thresholds 1.75, 1.25 and 2.9: all within a half of 2, 1 and 3; the second is not reached."""
    coder = coder_of("jumprelu", 0.1, bandwidth=1.0, **fields)
    set_to(coder, threshold=[1.75, 1.25, 2.9])
    found = step(coder, ONE)
    assert codes(found) == [[2, 0, 3]]
    # err = (1.8 1.4).
    assert found.loss.item() == pytest.approx(5.2 + 0.1 * penalty)
    # Slopes for the codes are 3.6, 2.8 and 4.4; -theta times them, and -0.1 times the penalty's.
    expected = [-1.75 * 3.6 - 0.1 * slopes[0], -1.25 * 2.8 - 0.1 * slopes[1], -2.9 * 4.4 - 0.1 * slopes[2]]
    assert_gradient(coder, "threshold", expected)
    # The step has no slope for the encoder, and a latent that is off passes nothing.
    assert_gradient(coder, "b_enc", [3.6, 0, 4.4])


def test_jumprelu_with_a_target_for_each_row() -> None:
    """L0 of the rows 2 and 0, target 1: by rows (1 + 1) / 2, by the batch 0."""
    losses = []
    for target_of in ("row", "batch"):
        coder = coder_of("jumprelu", 0.1, bandwidth=1.0, target_l0=1.0, target_of=target_of)
        set_to(coder, threshold=[1.75, 1.25, 2.9])
        losses.append(step(coder, TWO).loss.item())
    # err = (1.8 1.4) and (-1 2): 5.1.
    assert losses == pytest.approx([5.2, 5.1])


def test_gated() -> None:
    coder = coder_of("gated", 0.25)
    set_to(coder, b_enc=[-1.0, -1.5, 0.0], r_mag=[math.log(2), 0.0, 0.0], b_mag=[-1.0, 0.0, -1.0])
    found = step(coder, ONE)
    # Gates 1, -.5, 3; sizes 2 * 2 - 1, 1, 3 - 1.
    assert found.latents.values.flatten().tolist() == pytest.approx([3, 0, 2])
    # err = (4.2 1.6) - (2 1): 4.84 + .36.  L1 of the gates: 4.  From the gates (1 + 1.8, 2.4): .64 + 1.96.
    assert found.loss.item() == pytest.approx(5.2 + 0.25 * 4 + 2.6)
    # The gate's bias: .25 + 2 * .8 and .25 + 2 (.48 + 1.12), nothing of the 5.2.
    assert_gradient(coder, "b_enc", [1.85, 0, 3.45])
    # The sizes: 2 * 2.2 and 2 (1.32 + .48), nothing of the rest; r_mag times exp(r_mag) W_enc x = 4 and 3.
    assert_gradient(coder, "b_mag", [4.4, 0, 3.6])
    assert_gradient(coder, "r_mag", [17.6, 0, 10.8])
    # W_enc is shared: x times (2 * 4.4 + 1.85), 0 and (3.6 + 3.45).
    assert_gradient(coder, "W_enc", [21.3, 10.65, 0, 0, 14.1, 7.05])
    # 2 err f_i; nothing of the 2.6, nor of the penalty, in which its norm stands still.
    assert_gradient(coder, "W_dec", [13.2, 3.6, 0, 0, 8.8, 2.4])


def test_an_affine_skip() -> None:
    """W_skip = (0 1, 1 0, 1 1) takes (2 1) to (1 2 3); with the code 3 of latent 2 along (1 0 0), y_hat = (4 2 3)."""
    fields = {"d_in": 2, "d_out": 3, "width": 3, "sparsity": 1, "encoder_init": "own", "skip": True}
    coder = coders.build(coders.config_type("topk").read(fields, "test")).double()
    set_to(coder, W_enc=[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], W_skip=[[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    set_to(coder, W_dec=[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    x, y = torch.tensor(ONE).double(), torch.tensor([[0.0, 0.0, 2.0]]).double()
    found = coder.objective(Rows.mean(x, y), 1, DenseOps())
    found.loss.backward()
    assert found.y_hat.tolist() == [[4, 2, 3]]
    assert found.loss.item() == 16 + 4 + 1
    # 2 err x: (8 4 2) times (2 1).
    assert_gradient(coder, "W_skip", [16, 8, 8, 4, 4, 2])
