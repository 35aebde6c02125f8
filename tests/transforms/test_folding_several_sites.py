"""Folding a crosscoder's factors, one a site, into its weights; and what is left beside a coder of per-row normalisers.

The oracle normalises, codes, decodes and undoes in float64, step by step. Rows are float32: 1e-5 of the largest entry
is about a hundred ulps.

Shape letters: B rows, D width of the concatenated sites, F latents.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder
from panscope.coders.jumprelu import JumpReLUCoder
from panscope.coders.normaliser import Kind, Normaliser, Part
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.unit_decoder import keeps_selection, unit_decoder
from panscope.types import Site
from tests.transforms.test_same_function import assert_near, assert_same, compute

B, WIDTHS, SCALES, F = 64, (3, 4, 2), (0.05, 8.0, 0.7), 30
D = sum(WIDTHS)
PARTS = tuple(Part(width=width, scale=scale) for width, scale in zip(WIDTHS, SCALES, strict=True))
CROSS = Normaliser(kind="unit_rms", scale_in=1, scale_out=1, parts=PARTS)
FACTORS = torch.tensor([scale for width, scale in zip(WIDTHS, SCALES, strict=True) for _ in range(width)]).double()
KINDS: dict[str, dict[str, Any]] = {
    "relu": {"architecture": "relu", "sparsity": 0.3},
    "topk_value": {"architecture": "topk", "sparsity": 4},
    "topk_norm": {"architecture": "topk", "sparsity": 4, "selection": "decoder_norm"},
    "jumprelu": {"architecture": "jumprelu", "sparsity": 0.2},
    "gated": {"architecture": "gated", "sparsity": 0.2},
}
SITES = tuple(Site(layer, "resid_post") for layer in range(3))
every_kind = pytest.mark.parametrize("kind", KINDS)


def random_coder(kind: str, **fields: Any) -> Coder:
    base = {"d_in": D, "d_out": D, "width": F, "decoder_norm": "free"} | KINDS[kind] | fields
    coder = coders.build(coders.config_type(base["architecture"]).read(base, "test"))
    generator = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        if isinstance(coder, JumpReLUCoder):
            coder.threshold.abs_()
        if coder.config.decoder_norm == "unit":
            coder.W_dec.div_(coder.W_dec.norm(dim=1, keepdim=True))
    return coder


def rows(seed: int = 22) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed))


@every_kind
@pytest.mark.parametrize("pre_bias", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_crosscoders_factors_fold(kind: str, pre_bias: bool, skip: bool) -> None:
    """Also ranking by decoder norm, though the new norms are other ones: the same latents are chosen as in training."""
    coder, raw = random_coder(kind, pre_encoder_bias=pre_bias, skip=skip), (rows() / FACTORS).float()
    codes, y_hat = compute(coder, raw.double() * FACTORS)
    norms = coder.tensors()["W_dec"].double().norm(dim=1) if kind == "topk_norm" else 1.0
    folded = fold_norm(coder, CROSS)
    found, found_y = compute(folded, raw)
    assert_near(found, codes * norms / FACTORS.mean(), 2e-6)
    # Sites differ in size by 160, and each is asked for by itself.
    for piece, wanted in zip((found_y * FACTORS).split(WIDTHS, dim=1), y_hat.split(WIDTHS, dim=1), strict=True):
        assert_near(piece, wanted, 5e-6)
    assert_near(folded.decode(folded.encode(raw), raw).detach().double() * FACTORS, y_hat)
    assert folded.config.decoder_norm == "free"
    assert not folded.config.pre_encoder_bias


@every_kind
def test_saving_a_crosscoder_never_chooses_other_latents(kind: str) -> None:
    """What a run does at its end: fold, then unit norms where that keeps the selection."""
    coder, raw = random_coder(kind, decoder_norm="free"), (rows() / FACTORS).float()
    codes, y_hat = compute(coder, raw.double() * FACTORS)
    folded = fold_norm(coder, CROSS)
    saved = unit_decoder(folded) if keeps_selection(folded) else folded
    assert (saved.encode(raw).dense() > 0).equal(codes > 0)
    assert_near(saved.decode(saved.encode(raw), raw).detach().double() * FACTORS, y_hat)


def test_equal_factors_fold_as_one() -> None:
    coder = random_coder("jumprelu", pre_encoder_bias=True)
    same = Normaliser(kind="unit_rms", scale_in=1, scale_out=1, parts=(Part(width=4, scale=3), Part(width=5, scale=3)))
    one, other = fold_norm(coder, same), fold_norm(coder, Normaliser(kind="unit_rms", scale_in=3, scale_out=3))
    for name, tensor in one.tensors().items():
        # Both in float64, rounded once.
        assert torch.allclose(tensor, other.tensors()[name], rtol=2e-7, atol=0)


def normalised(kind: Kind, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(inside, centre, size) of float64 rows by the definitions."""
    if kind == "standardise":
        centre = x.sum(dim=1, keepdim=True) / x.shape[1]
        size = (((x - centre) ** 2).sum(dim=1, keepdim=True) / (x.shape[1] - 1)).sqrt()
        return (x - centre) / (size + 1e-5), centre, size
    centre, size = torch.zeros(len(x), 1).double(), ((x**2).sum(dim=1, keepdim=True) / x.shape[1]).sqrt()
    return x / size, centre, size


@every_kind
@pytest.mark.parametrize("kind_of_rows", ["standardise", "token_norm"])
@pytest.mark.parametrize("pre_bias", [False, True])
def test_a_per_row_normaliser_stays_beside_the_coder(kind: str, kind_of_rows: Kind, pre_bias: bool) -> None:
    coder, raw = random_coder(kind, pre_encoder_bias=pre_bias, skip=True), rows() * 40 + 3
    normaliser = Normaliser(kind=kind_of_rows, scale_in=1, scale_out=1)
    inside, centre, size = normalised(kind_of_rows, raw.double())
    codes, y_hat = compute(coder, inside)
    folded = fold_norm(coder, normaliser)
    assert not folded.config.pre_encoder_bias
    wiring = Wiring(wiring="sae", reads=SITES[:1], predicts=SITES[:1])
    wired = WiredCoder(wiring, folded, normaliser.left_after_folding())
    assert wired.normaliser == normaliser
    found = wired.encode(raw)
    assert_near(found.dense().detach(), codes)
    assert (found.dense() > 0).equal(codes > 0)
    assert_near(wired.decode(found, raw).detach(), y_hat * size + centre)


def test_a_crosscoder_with_a_per_row_normaliser_treats_each_site_by_itself() -> None:
    coder, raw = random_coder("jumprelu"), rows() * 40 + 3
    parts = tuple(Part(width=width, scale=1) for width in WIDTHS)
    normaliser = Normaliser(kind="standardise", scale_in=1, scale_out=1, parts=parts)
    pieces = [normalised("standardise", piece) for piece in raw.double().split(WIDTHS, dim=1)]
    codes, y_hat = compute(coder, torch.cat([inside for inside, _, _ in pieces], dim=1))
    wired = WiredCoder(
        Wiring(wiring="crosscoder", reads=SITES, predicts=SITES), fold_norm(coder, normaliser), normaliser
    )
    assert_near(wired.encode(raw).dense().detach(), codes)
    by_site = wired.wiring.split(wired.decode(wired.encode(raw), raw).detach(), list(WIDTHS))
    expected = [y * size + centre for y, (_, centre, size) in zip(y_hat.split(WIDTHS, 1), pieces, strict=True)]
    for found, wanted in zip(by_site, expected, strict=True):
        assert_near(found, wanted)


def test_fixed_factors_leave_nothing_beside_the_coder() -> None:
    for kind in ("unit_rms", "sqrt_d", "rms_sqrt_d", "none"):
        left = Normaliser(kind=kind, scale_in=0.5, scale_out=2).left_after_folding()
        assert (left.kind, left.scale_in, left.scale_out, left.parts) == ("none", 1, 1, ())
    assert CROSS.left_after_folding().parts == ()


def test_the_window_and_threshold_of_a_crosscoder_scale_with_its_codes() -> None:
    coder = random_coder("jumprelu", bandwidth=0.3)
    folded = fold_norm(coder, CROSS)
    assert isinstance(coder, JumpReLUCoder)
    assert isinstance(folded, JumpReLUCoder)
    mean = FACTORS.mean().item()
    assert folded.config.bandwidth == pytest.approx(0.3 / mean)
    assert torch.allclose(folded.threshold.double(), coder.threshold.double() / mean, rtol=1e-6)


@every_kind
def test_several_sites_of_one_size_keep_codes(kind: str) -> None:
    """Without parts, the checks of one site hold for any width."""
    coder, raw = random_coder(kind), rows()
    codes, y_hat = compute(coder, raw)
    folded = fold_norm(coder, Normaliser(kind="sqrt_d", scale_in=2, scale_out=2))
    assert_same(folded, raw / 2, codes / 2, y_hat / 2)
