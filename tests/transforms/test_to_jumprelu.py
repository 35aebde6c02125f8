"""From TopK to a single threshold: the same mean number of active latents, and nearly the same output."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.jumprelu import JumpReLUCoder
from panscope.coders.normaliser import Normaliser
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import MeanL0Threshold, to_jumprelu, with_threshold
from panscope.types import UserError


def topk_coder(W_enc: Tensor, k: int, **fields: Any) -> Coder:
    """A TopK coder with this encoder [F, D] and its copy as decoder."""
    width, d = W_enc.shape
    base = {"d_in": d, "d_out": d, "width": width, "sparsity": k, "decoder_norm": "free"}
    coder = coders.build(coders.config_type("topk").read(base | fields, "test"))
    return coder.load_tensors(coder.tensors() | {"W_enc": W_enc, "W_dec": W_enc})


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def total_l0(coder: Coder, batches: Sequence[Tensor]) -> int:
    return sum(int(coder.encode(x).l0().sum()) for x in batches)


@given(st.integers(0, 99), st.integers(1, 4), st.lists(st.integers(0, 9), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_k_latents_are_active_on_average(seed: int, k: int, sizes: list[int]) -> None:
    """Exactly, or one less or more where the two neighbours of the threshold are neighbouring floats."""
    coder, batches = topk_coder(draw(seed, 24, 6), k), [draw(seed + n, size, 6) for n, size in enumerate(sizes)]
    assume(sum(sizes) > 0)
    jump = to_jumprelu(coder, batches)
    assert abs(total_l0(jump, batches) - k * sum(sizes)) <= 1


@given(st.integers(0, 99), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_ties_cost_no_more_than_the_tied(seed: int, k: int) -> None:
    """Pre-activations are whole numbers here, many of them equal; no threshold can split equal ones."""
    coder = topk_coder((draw(seed, 12, 4) * 2).round(), k)
    batches = [(draw(seed + 1, 5, 4) * 2).round(), (draw(seed + 2, 2, 4) * 2).round()]
    values = sorted(torch.cat(batches).matmul(coder.tensors()["W_enc"].T).flatten().tolist(), reverse=True)
    wanted = 7 * k
    boundary = values[wanted - 1]
    assume(boundary > 0)
    tied = values.count(boundary)
    error = abs(total_l0(to_jumprelu(coder, batches), batches) - wanted)
    assert error <= (tied - 1 if values[wanted] == boundary else 0)


def test_the_threshold_lies_midway() -> None:
    """Over 2 rows with K = 2 the 4th and 5th largest of 9 8 3 1 | 7 5 2 1 are 5 and 3."""
    coder = topk_coder(torch.eye(4), 2)
    batches = [torch.tensor([[9.0, 3.0, 8.0, 1.0]]), torch.tensor([[5.0, 7.0, 1.0, 2.0]])]
    jump = to_jumprelu(coder, batches)
    assert isinstance(jump, JumpReLUCoder)
    assert jump.threshold.tolist() == [4.0] * 4
    assert jump.encode(torch.tensor([[9.0, 3.9, 4.1, -5.0]])).values.tolist() == [[9.0, 0.0, pytest.approx(4.1), 0.0]]


def test_the_next_largest_may_be_zero() -> None:
    coder = topk_coder(torch.eye(3), 1)
    jump = to_jumprelu(coder, [torch.tensor([[2.0, -1.0, -1.0]])])
    assert isinstance(jump, JumpReLUCoder)
    assert jump.threshold.tolist() == [1.0] * 3


def test_the_threshold_can_be_found_batch_by_batch() -> None:
    coder, batches = topk_coder(draw(0, 24, 6), 3), [draw(n, 5 + n, 6) for n in range(4)]
    found = MeanL0Threshold(3, sum(len(x) for x in batches))
    for x in batches:
        found.update(coder.preactivations(x))
    jump = with_threshold(coder, found.value())
    assert abs(total_l0(jump, batches) - 3 * sum(len(x) for x in batches)) <= 1
    assert jump.tensors()["threshold"].equal(to_jumprelu(coder, batches).tensors()["threshold"])


def test_rows_that_were_promised_and_never_came_are_noticed() -> None:
    """Half of the rows would give a threshold that is far too low, or blame K."""
    coder, rows = topk_coder(draw(0, 24, 6), 3), draw(1, 20, 6)
    for promised in (22, 1000):
        found = MeanL0Threshold(3, promised)
        found.update(coder.preactivations(rows))
        with pytest.raises((AssertionError, UserError)) as caught:
            found.value()
        assert "lower K" not in str(caught.value)


def test_how_the_rows_are_cut_into_batches_does_not_matter() -> None:
    """Whole numbers, so that no sum is rounded."""
    coder, rows = topk_coder((draw(0, 16, 5) * 9).round(), 3), (draw(1, 30, 5) * 9).round()
    whole = to_jumprelu(coder, [rows]).tensors()["threshold"]
    for cuts in ([1] * 30, [29, 1], [0, 10, 0, 20], [7, 11, 12]):
        assert to_jumprelu(coder, rows.split(cuts)).tensors()["threshold"].equal(whole)


def test_too_few_positive_pre_activations_are_refused() -> None:
    coder = topk_coder(torch.eye(4), 2)
    rows = torch.tensor([[1.0, 2.0, 3.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])
    with pytest.raises(UserError, match=r"sparsity \(K\) 2 is above the mean number of positive latents"):
        to_jumprelu(coder, [rows])


def test_a_code_that_keeps_everything_has_no_threshold() -> None:
    with pytest.raises(UserError, match="no threshold"):
        to_jumprelu(topk_coder(torch.eye(4), 4), [torch.ones(2, 4)])


@pytest.mark.parametrize("batches", [[], [torch.ones(0, 4)]])
def test_no_rows_have_no_threshold(batches: list[Tensor]) -> None:
    with pytest.raises(UserError, match="no threshold"):
        to_jumprelu(topk_coder(torch.eye(4), 2), batches)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu"])
def test_only_topk_is_taken(architecture: str) -> None:
    """And that is what the sentence says, before anything is asked of a K that such a coder does not have."""
    fields = {"d_in": 4, "d_out": 4, "width": 8, "sparsity": 0.1}
    coder = coders.build(coders.config_type(architecture).read(fields, "test"))
    with pytest.raises(UserError, match=f"{architecture}.*cannot become JumpReLU"):
        to_jumprelu(coder, [torch.ones(2, 4)])


def test_ranking_by_norm_is_refused_and_the_way_out_named() -> None:
    with pytest.raises(UserError, match="decoder_norm") as caught:
        to_jumprelu(topk_coder(torch.eye(4), 2, selection="decoder_norm"), [torch.ones(2, 4)])
    assert "unit" in str(caught.value)


def test_the_output_is_that_of_topk_where_the_code_is_clear() -> None:
    """Three strong latents per row over a weak background: both keep the three."""
    width = 12
    directions = torch.linalg.qr(draw(0, width, width)).Q
    strong = torch.rand(50, width, generator=torch.Generator().manual_seed(1)).topk(3, dim=1).indices
    size = torch.rand(50, 3, generator=torch.Generator().manual_seed(2)) + 1
    codes = draw(3, 50, width).mul(0.05).scatter(1, strong, size)
    coder, rows = topk_coder(directions, 3), codes @ directions
    jump = to_jumprelu(coder, [rows[:20], rows[20:]])
    assert jump.encode(rows).l0().tolist() == [3] * 50
    # The same weights, the same latents: float32 rounding of sums of a dozen terms near 1.
    assert torch.allclose(jump.decode(jump.encode(rows), rows), coder.decode(coder.encode(rows), rows), atol=1e-5)


def test_the_output_is_close_to_that_of_topk_where_it_is_not() -> None:
    """Random rows: some keep more latents and some fewer. The explained variance stays within a fifth of TopK's."""
    directions = torch.nn.functional.normalize(draw(0, 32, 16), dim=1)
    coder, rows = topk_coder(directions, 4), draw(1, 400, 16)
    with torch.no_grad():
        coder.W_dec.mul_(0.4)
    jump = to_jumprelu(coder, [rows])

    def explained(x: Coder) -> float:
        left = (x.decode(x.encode(rows), rows) - rows).square().sum().item()
        return 1 - left / rows.square().sum().item()

    assert explained(coder) > 0.3
    assert explained(jump) == pytest.approx(explained(coder), rel=0.2)


def test_converting_and_folding_commute() -> None:
    coder, rows = topk_coder(draw(0, 16, 5), 3), draw(1, 40, 5)
    normaliser = Normaliser(kind="unit_rms", scale_in=0.1, scale_out=0.1)
    one = fold_norm(to_jumprelu(coder, [rows]), normaliser).tensors()
    two = to_jumprelu(fold_norm(coder, normaliser), [rows / 0.1]).tensors()
    for name in one:
        # A hundred ulps for pre-activations summed in two scales.
        assert torch.allclose(one[name], two[name], rtol=1e-5)


def test_everything_but_the_threshold_is_kept() -> None:
    coder = topk_coder(draw(0, 16, 5), 3, pre_encoder_bias=True)
    with torch.no_grad():
        coder.b_enc.uniform_(0, 0.1)
        coder.b_dec.uniform_(-0.1, 0.1)
    jump = to_jumprelu(coder, [draw(1, 40, 5)])
    assert jump.config.pre_encoder_bias
    assert jump.config.architecture == "jumprelu"
    for name, tensor in coder.tensors().items():
        assert jump.tensors()[name].equal(tensor)
    assert jump.tensors()["threshold"].unique().numel() == 1
