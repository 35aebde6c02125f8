"""A BatchTopK coder as the equivalent JumpReLU coder: the same codes.

Shape letters: B rows, D input width, F latents.
"""

from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.jumprelu import JumpReLUCoder
from panscope.coders.normaliser import Normaliser
from panscope.ops.base import Rows
from panscope.ops.dense import DenseOps
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import frozen, to_jumprelu
from panscope.transforms.unit_decoder import unit_decoder
from panscope.types import UserError

D, F, K = 6, 20, 3
every_kind = pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
every_selection = pytest.mark.parametrize("selection", ["value", "decoder_norm"])


def batchtopk(architecture: str = "batchtopk", steps: int = 3, **fields: Any) -> BatchTopKCoder:
    """Random weights, free decoder norms, a threshold from `steps` batches."""
    shares = {"prefixes": (0.25, 1.0)} if architecture == "matryoshka" else {}
    base = {"d_in": D, "d_out": D, "width": F, "sparsity": K, "decoder_norm": "free"} | shares
    coder = coders.build(coders.config_type(architecture).read(base | fields, "test"))
    generator = torch.Generator().manual_seed(31)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    assert isinstance(coder, BatchTopKCoder)
    for seed in range(steps):
        x = rows(seed)
        coder.track(coder.objective(Rows.mean(x, x), K, DenseOps()).least)
    return coder


def rows(seed: int, count: int = 200) -> torch.Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


@every_kind
@every_selection
@pytest.mark.parametrize("steps", [0, 3])
def test_the_codes_are_exactly_those_of_encode(architecture: str, selection: str, steps: int) -> None:
    """Also before any step, where the threshold is 0 and `encode` a ReLU; also beside the threshold itself."""
    coder = batchtopk(architecture, steps, selection=selection, pre_encoder_bias=True)
    jump = frozen(coder)
    assert isinstance(jump, JumpReLUCoder)
    x = rows(9)
    assert jump.encode(x).dense().equal(coder.encode(x).dense())
    assert jump.decode(jump.encode(x), x).equal(coder.decode(coder.encode(x), x))
    if steps:
        assert coder.threshold.item() > 0
        # On average K on rows like those of training: 200 rows of about 3 +- 1 active latents.
        assert coder.encode(x).l0().double().mean().item() == pytest.approx(K, abs=0.5)


@every_selection
def test_exactly_at_the_threshold_both_are_silent(selection: str) -> None:
    coder = batchtopk(selection=selection, steps=0)
    with torch.no_grad():
        coder.W_enc.copy_(torch.eye(F, D))
        coder.b_enc.zero_()
        coder.W_dec.copy_(torch.eye(F, D) * 2 + torch.eye(F, D).roll(D, 0) * 2 + 1e-3)
        coder.threshold.fill_(1.5)
    at = coder.thresholds()[:D].detach()
    x = torch.stack([at, torch.nextafter(at, at + 1), torch.nextafter(at, at - 1)])
    for one in (coder, frozen(coder)):
        assert (one.encode(x).dense()[:, :D] > 0).all(dim=1).tolist() == [False, True, False]
        assert (one.encode(x).dense()[:, :D] > 0).any(dim=1).tolist() == [False, True, False]


@every_kind
def test_a_frozen_coder_says_what_it_came_from(architecture: str) -> None:
    jump = frozen(batchtopk(architecture, skip=True))
    assert jump.config.architecture == "jumprelu"
    assert getattr(jump.config, "target_l0") == jump.config.sparsity == K  # noqa: B009
    assert jump.config.skip
    assert jump.config.prefixes == ((0.25, 1.0) if architecture == "matryoshka" else ())


def test_every_weight_is_kept_and_the_coder_is_untouched() -> None:
    coder = batchtopk()
    before = coder.tensors()
    after = frozen(coder).tensors()
    assert after.keys() == before.keys()
    assert all(after[name].equal(before[name]) for name in before if name != "threshold")
    assert after["threshold"].tolist() == [before["threshold"].item()] * F
    assert all(tensor.equal(before[name]) for name, tensor in coder.tensors().items())


def test_ranked_by_norm_every_latent_has_a_threshold_of_its_own() -> None:
    coder = batchtopk(selection="decoder_norm")
    norms = coder.W_dec.detach().double().square().sum(dim=1).sqrt()
    expected = coder.threshold.double() / norms
    assert torch.allclose(frozen(coder).tensors()["threshold"].double(), expected, rtol=1e-6)


@every_selection
def test_a_frozen_coder_folds_and_takes_unit_norms(selection: str) -> None:
    """Threshold, codes and norms change together: the reconstruction of raw rows stays."""
    coder, x = batchtopk(selection=selection, pre_encoder_bias=True), rows(9)
    y_hat = coder.decode(coder.encode(x), x).detach()
    folded = unit_decoder(fold_norm(frozen(coder), Normaliser(kind="unit_rms", scale_in=0.1, scale_out=0.1)))
    raw = x / 0.1
    # A hundred ulps of float32.
    assert torch.allclose(folded.decode(folded.encode(raw), raw) * 0.1, y_hat, atol=1e-5 * float(y_hat.abs().max()))


@pytest.mark.parametrize("transform", [fold_norm, unit_decoder])
def test_other_transforms_ask_for_freezing_first(transform: Any) -> None:
    """The running threshold is no weight: folded by itself it would be lost."""
    extra = [Normaliser(kind="unit_rms", scale_in=0.1, scale_out=0.1)] if transform is fold_norm else []
    with pytest.raises(AssertionError, match="JumpReLU first"):
        transform(batchtopk(), *extra)


def test_batchtopk_needs_no_calibration_and_is_refused_it() -> None:
    with pytest.raises(UserError, match="'batchtopk' cannot become JumpReLU"):
        to_jumprelu(batchtopk(), [rows(1)])


def test_k_of_the_whole_width_has_no_target() -> None:
    """target_l0 must be below the width; a coder that keeps everything has none."""
    assert getattr(frozen(batchtopk(sparsity=F)).config, "target_l0") is None  # noqa: B009
