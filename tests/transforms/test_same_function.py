"""`fold_norm` and `unit_decoder` change the weights of a coder but not the function it computes.

What a coder computes is written here again in float64 from its stored tensors. In float32 the two forms differ by the
rounding of their weights and sums: 1e-5 of the largest entry is about a hundred ulps.

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.gated import GatedCoder
from panscope.coders.jumprelu import JumpReLUCoder, JumpReLUConfig
from panscope.coders.normaliser import Normaliser
from panscope.coders.topk import TopKConfig
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.unit_decoder import unit_decoder
from panscope.types import UserError

B, D, F = 64, 8, 20
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "relu": {"architecture": "relu", "sparsity": 0.3},
    "topk_value": {"architecture": "topk", "sparsity": 4, "decoder_norm": "unit"},
    "topk_norm": {"architecture": "topk", "sparsity": 4, "selection": "decoder_norm"},
    "jumprelu": {"architecture": "jumprelu", "sparsity": 0.2, "bandwidth": 0.05},
    "gated": {"architecture": "gated", "sparsity": 0.2},
}
WIRINGS: dict[str, dict[str, Any]] = {
    "sae": {"d_out": D},
    "sae_pre_bias": {"d_out": D, "pre_encoder_bias": True},
    "transcoder": {"d_out": D + 3, "encoder_init": "own"},
    "transcoder_skip": {"d_out": D + 3, "encoder_init": "own", "skip": True},
}
SCALES = [(0.05, 0.05), (12.0, 12.0), (0.03, 2.5)]
every_coder = pytest.mark.parametrize("kind", ARCHITECTURES)
every_wiring = pytest.mark.parametrize("wiring", WIRINGS)
every_scale = pytest.mark.parametrize("scales", SCALES)


def random_coder(kind: str, wiring: str) -> Coder:
    """Random weights; decoder norms between about 0.3 and 2 unless the configuration asks for 1."""
    fields = {"d_in": D, "width": F, "decoder_norm": "free"} | WIRINGS[wiring] | ARCHITECTURES[kind]
    coder = coders.build(coders.config_type(fields["architecture"]).read(fields, "test"))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        size = torch.rand(F, 1, generator=generator) * 1.7 + 0.3
        coder.W_dec.div_(coder.W_dec.norm(dim=1, keepdim=True))
        if coder.config.decoder_norm == "free":
            coder.W_dec.mul_(size)
        if isinstance(coder, JumpReLUCoder):
            coder.threshold.abs_()
    return coder


def random_rows() -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(12))


def compute(coder: Coder, x: Tensor) -> tuple[Tensor, Tensor]:
    """(codes [B, F], reconstruction [B, E]) in float64 from the stored tensors, by the papers' formulas."""
    w = {name: tensor.double() for name, tensor in coder.tensors().items()}
    centred = x.double() - w["b_dec"] if coder.config.pre_encoder_bias else x.double()
    along = torch.einsum("bd,fd->bf", centred, w["W_enc"])
    pre = along + w["b_enc"]
    codes = pre.clamp(min=0)
    if isinstance(coder, GatedCoder):
        codes = torch.where(pre > 0, (w["r_mag"].exp() * along + w["b_mag"]).clamp(min=0), 0.0)
    if isinstance(coder.config, JumpReLUConfig):
        codes = torch.where(pre > w["threshold"], pre, 0.0)
    if isinstance(coder.config, TopKConfig):
        norms = (
            w["W_dec"].square().sum(dim=1).sqrt()
            if coder.config.selection == "decoder_norm"
            else torch.ones(coder.config.width)
        )
        rank = (codes * norms).argsort(dim=1, descending=True).argsort(dim=1)
        codes = codes * (rank < int(coder.config.sparsity))
    y_hat = torch.einsum("bf,fe->be", codes, w["W_dec"]) + w["b_dec"]
    return codes, y_hat + torch.einsum("bd,ed->be", x.double(), w["W_skip"]) if coder.config.skip else y_hat


def assert_near(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    assert (found.double() - expected.double()).abs().max() <= share * expected.abs().max()


def assert_same(new: Coder, rows: Tensor, codes: Tensor, y_hat: Tensor) -> None:
    """`new` has these codes and outputs on `rows`, by its own float32 code and by the float64 formula."""
    active = codes > 0
    assert 0.02 < active.double().mean() < 0.98
    for found_codes, found_y, share in (
        (new.encode(rows).dense().detach(), new.decode(new.encode(rows), rows).detach(), 1e-5),
        # Here only the rounding of the weights to float32 is left.
        (*compute(new, rows), 2e-6),
    ):
        assert (found_codes > 0).equal(active)
        assert_near(found_codes, codes, share)
        assert_near(found_y, y_hat, share)


@every_coder
@every_wiring
@every_scale
def test_folding_keeps_the_reconstruction_of_raw_rows(kind: str, wiring: str, scales: tuple[float, float]) -> None:
    s_in, s_out = scales
    coder, x = random_coder(kind, wiring), random_rows()
    before = coder.tensors()
    folded = fold_norm(coder, Normaliser(kind="unit_rms", scale_in=s_in, scale_out=s_out))
    codes, y_hat = compute(coder, x)
    assert_same(folded, x / s_in, codes / s_in, y_hat / s_out)
    assert not folded.config.pre_encoder_bias
    assert all(tensor.equal(before[name]) for name, tensor in coder.tensors().items())


def test_folding_scales_thresholds_and_the_window() -> None:
    coder = random_coder("jumprelu", "sae")
    folded = fold_norm(coder, Normaliser(kind="unit_rms", scale_in=0.05, scale_out=0.05))
    assert isinstance(coder, JumpReLUCoder)
    assert isinstance(folded, JumpReLUCoder)
    # One float64 division, rounded to float32, against one in float32.
    assert torch.allclose(folded.threshold, coder.threshold / 0.05, rtol=2e-7)
    assert folded.config.bandwidth == pytest.approx(0.05 / 0.05)


@every_coder
def test_folding_ones_without_a_pre_encoder_bias_changes_no_bit(kind: str) -> None:
    coder = random_coder(kind, "sae")
    folded = fold_norm(coder, Normaliser(kind="none", scale_in=1, scale_out=1))
    assert all(tensor.equal(coder.tensors()[name]) for name, tensor in folded.tensors().items())


@every_scale
def test_a_folded_coder_says_truly_whether_its_decoder_has_unit_norms(scales: tuple[float, float]) -> None:
    coder = random_coder("topk_value", "transcoder")
    assert coder.config.decoder_norm == "unit"
    folded = fold_norm(coder, Normaliser(kind="unit_rms", scale_in=scales[0], scale_out=scales[1]))
    is_unit = torch.allclose(folded.W_dec.norm(dim=1), torch.ones(F), rtol=1e-5)
    assert (folded.config.decoder_norm == "unit") == is_unit


@every_coder
@every_wiring
def test_unit_norms_keep_the_reconstruction(kind: str, wiring: str) -> None:
    coder, x = random_coder(kind, wiring), random_rows()
    norms = coder.tensors()["W_dec"].double().norm(dim=1)
    unit = unit_decoder(coder)
    codes, y_hat = compute(coder, x)
    assert_same(unit, x, codes * norms, y_hat)
    assert torch.allclose(unit.W_dec.norm(dim=1), torch.ones(F), rtol=1e-6)
    assert unit.config.decoder_norm == "unit"


def test_ranking_by_norm_becomes_ranking_by_value() -> None:
    unit = unit_decoder(random_coder("topk_norm", "sae"))
    assert isinstance(unit.config, TopKConfig)
    assert unit.config.selection == "value"


def test_ranking_by_value_is_refused_where_norms_differ() -> None:
    coder = random_coder("topk_value", "sae")
    with torch.no_grad():
        coder.W_dec[3].mul_(1.001)
    with pytest.raises(UserError, match="norms differ"):
        unit_decoder(coder)


def test_ranking_by_value_is_taken_where_norms_agree_but_are_not_one() -> None:
    coder, x = random_coder("topk_value", "sae"), random_rows()
    with torch.no_grad():
        coder.W_dec.mul_(3)
    codes, y_hat = compute(coder, x)
    assert_same(unit_decoder(coder), x, codes * 3, y_hat)


@pytest.mark.parametrize("kind", ["relu", "topk_norm", "jumprelu", "gated"])
def test_a_latent_with_a_zero_vector_keeps_having_no_effect(kind: str) -> None:
    """A strong encoder must not let it take a place that it could not take when norms ranked."""
    coder, x = random_coder(kind, "sae"), random_rows()
    with torch.no_grad():
        coder.W_dec[5].zero_()
        coder.W_enc[5].mul_(20)
    _, y_hat = compute(coder, x)
    unit = unit_decoder(coder)
    assert unit.W_dec[5].count_nonzero() == 0
    assert all(tensor.isfinite().all() for tensor in unit.tensors().values())
    assert_near(unit.decode(unit.encode(x), x).detach(), y_hat)


@every_coder
@every_wiring
@every_scale
def test_both_together_in_either_order(kind: str, wiring: str, scales: tuple[float, float]) -> None:
    s_in, s_out = scales
    coder, x = random_coder(kind, wiring), random_rows()
    normaliser = Normaliser(kind="unit_rms", scale_in=s_in, scale_out=s_out)
    norms = coder.tensors()["W_dec"].double().norm(dim=1)
    codes, y_hat = compute(coder, x)
    last_unit, last_folded = unit_decoder(fold_norm(coder, normaliser)), fold_norm(unit_decoder(coder), normaliser)
    assert_same(last_unit, x / s_in, codes * norms / s_out, y_hat / s_out)
    assert_same(last_folded, x / s_in, codes * norms / s_in, y_hat / s_out)
    assert torch.allclose(last_unit.W_dec.norm(dim=1), torch.ones(F), rtol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_coder
def test_a_transformed_coder_is_where_the_coder_was(kind: str) -> None:
    coder = random_coder(kind, "sae").to("cuda")
    normaliser = Normaliser(kind="unit_rms", scale_in=0.1, scale_out=0.1)
    for new in (fold_norm(coder, normaliser), unit_decoder(coder)):
        assert {parameter.device for parameter in new.parameters()} == {coder.W_enc.device}
