"""Encoding and decoding of any leading shape, by the reference and by sparse kernels, against float64 by hand.

Shape letters: ... a leading shape, D input width, E output width, F latents.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panscope.coders import inference
from panscope.coders.inference import backend_for
from panscope.coders.normaliser import Normaliser
from panscope.lms.model import LanguageModel
from panscope.loading.loaded_coder import LoadedCoder
from panscope.types import Site, UserError
from tests.support.attached import SPARSITY, STANDARDISE, F, made

SITE = Site(1, "resid_post")
SHAPES = ((24,), (5, 24), (2, 3, 24), (2, 1, 4, 24), (0, 24))
SELECTING = ("topk", "batchtopk", "matryoshka", "jumprelu")
TOKEN_NORM = Normaliser(kind="token_norm", scale_in=1, scale_out=1)


def by_hand(coder: LoadedCoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction of rows [B, D] in float64, each architecture's formula written out."""
    weights = {name: tensor.double() for name, tensor in coder.wired.coder.tensors().items()}
    config, rows = coder.wired.coder.config, x.double()
    centre, size, added = torch.zeros(len(x), 1).double(), torch.ones(len(x), 1).double(), 0.0
    if coder.wired.normaliser.kind == "standardise":
        centre, size, added = rows.mean(dim=1, keepdim=True), rows.std(dim=1, keepdim=True), 1e-5
    if coder.wired.normaliser.kind == "token_norm":
        size = rows.square().sum(dim=1, keepdim=True).sqrt() / x.shape[1] ** 0.5
    inside = (rows - centre) / (size + added)
    given = inside - weights["b_dec"] if config.pre_encoder_bias else inside
    product = given @ weights["W_enc"].T
    pre = product + weights["b_enc"]
    if config.architecture == "relu":
        codes = pre.clamp(min=0)
    elif config.architecture == "topk":
        ranked = pre.clamp(min=0)
        if getattr(config, "selection", "value") == "decoder_norm":
            ranked = ranked * weights["W_dec"].norm(dim=1)
        least = ranked.sort(dim=1, descending=True).values[:, int(config.sparsity) - 1 : int(config.sparsity)]
        codes = torch.where((ranked >= least) & (ranked > 0), pre, torch.zeros(()).double())
    elif config.architecture == "gated":
        codes = (pre > 0) * (weights["r_mag"].exp() * product + weights["b_mag"]).clamp(min=0)
    else:
        codes = pre * (pre > weights["threshold"])
    base = weights["b_dec"] + (inside @ weights["W_skip"].T if config.skip else 0)
    return codes, (codes @ weights["W_dec"] + base) * size + centre


CASES: list[dict[str, Any]] = [
    {},
    {"pre_encoder_bias": True},
    {"skip": True},
    {"normaliser": STANDARDISE},
    {"normaliser": TOKEN_NORM, "skip": True, "pre_encoder_bias": True},
]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("architecture", SPARSITY)
@pytest.mark.parametrize("kernels", ["reference", "sparse"])
def test_any_shape_by_hand(llama: LanguageModel, architecture: str, case: int, kernels: str) -> None:
    if kernels == "sparse" and architecture not in SELECTING:
        with pytest.raises(UserError, match=f"architecture '{architecture}' selects no latents"):
            made(llama, SITE, architecture=architecture, kernels=kernels)
        return
    by_norm: dict[str, Any] = {"selection": "decoder_norm"}
    fields = CASES[case] | (by_norm if architecture == "topk" and case == 1 else {})
    coder = made(llama, SITE, architecture=architecture, kernels=kernels, **fields)
    for shape in SHAPES if coder.wired.normaliser.kind != "standardise" else SHAPES[:-1]:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        codes = coder.encode(x)
        y_hat = coder.decode(codes, x)
        expected, reconstruction = by_hand(coder, x.reshape(-1, 24))
        assert codes.leading == shape[:-1]
        torch.testing.assert_close(codes.tensor().double(), expected.view(*shape[:-1], F), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y_hat.double(), reconstruction.view(shape), rtol=1e-4, atol=1e-5)
        if not coder.needs_rows:
            assert torch.equal(coder.decode(codes), y_hat)
    assert coder.kernels == kernels


def test_some_coders_need_the_rows(llama: LanguageModel) -> None:
    cases: list[dict[str, Any]] = [{"skip": True}, {"normaliser": STANDARDISE}]
    for fields in cases:
        coder = made(llama, SITE, name="c", **fields)
        with pytest.raises(UserError, match=r"coder 'c' needs the rows to decode: call decode\(codes, x\)"):
            coder.decode(coder.encode(torch.randn(3, 24)))


@pytest.mark.parametrize("kernels", ["reference", "sparse"])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_gradients_reach_rows_and_codes(llama: LanguageModel, kernels: str, architecture: str) -> None:
    """By the reference, whatever the kernels: the derivative of the formula, by small steps in float64."""
    coder = made(llama, SITE, architecture=architecture, kernels=kernels, normaliser=STANDARDISE)
    x = torch.randn(4, 24, requires_grad=True)
    weights = torch.randn(4, 24)
    codes = coder.encode(x)
    (gradient,) = torch.autograd.grad((coder.decode(codes, x) * weights).sum(), [x])
    direction = torch.randn(4, 24).double()
    up, down = (by_hand(coder, x.detach() + step * direction)[1] for step in (1e-6, -1e-6))
    steps = ((up - down) * weights).sum() / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(steps), rel=1e-3)
    codes = coder.encode(x.detach())
    values = codes.values.clone().requires_grad_()
    (slopes,) = torch.autograd.grad((coder.decode(codes.with_values(values), x.detach()) * weights).sum(), [values])
    size = x.detach().std(dim=1, keepdim=True)
    expected = (weights * size) @ coder.wired.coder.W_dec.T
    found = codes.with_values(slopes).tensor()
    active = codes.tensor() != 0
    torch.testing.assert_close(found[active], expected[active], rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in coder.wired.coder.parameters())


def test_rows_that_fire_too_much_go_by_the_reference(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = made(llama, SITE, architecture="jumprelu", kernels="sparse")
    x = torch.randn(6, 24)
    assert coder.encode(x).starts is None  # over an eighth of 20 latents are active
    monkeypatch.setattr(inference, "_MOST", 1.0)
    sparse = coder.encode(x)
    assert sparse.starts is not None
    torch.testing.assert_close(sparse.tensor(), by_hand(coder, x)[0].float(), rtol=1e-4, atol=1e-5)


def test_which_way_a_coder_goes(llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(llama, SITE, kernels="auto").kernels == "reference"  # too small to pay
    monkeypatch.setattr(inference, "WIDE", 20)
    coder = made(llama, SITE, kernels="auto")
    assert coder.kernels == "sparse"
    assert coder.to(dtype=torch.bfloat16).kernels == "reference"
    assert coder.encode(torch.randn(2, 24)).values.dtype == torch.bfloat16
    assert made(llama, SITE, architecture="relu", kernels="auto").kernels == "reference"
    with pytest.raises(UserError, match="the coder is in bfloat16, and they compute float32"):
        backend_for(coder.wired.coder, "sparse")
    with pytest.raises(UserError, match="there are none for devices of type 'meta'"):
        made(llama, SITE, kernels="sparse").to("meta")


def test_other_widths_are_refused(llama: LanguageModel) -> None:
    coder = made(llama, SITE, name="c")
    for x in (torch.randn(3, 23), torch.tensor(1.0), torch.ones(3, 24, dtype=torch.int64)):
        with pytest.raises(UserError, match="coder 'c' reads rows of 24 numbers, but x is"):
            coder.encode(x)
    assert repr(coder) == "LoadedCoder('c': topk, 20 latents, L01.resid_post, reference)"
    transcoder = made(llama, Site(1, "mlp_in"), Site(1, "mlp_out"), name="tc")
    assert "L01.mlp_in -> L01.mlp_out" in repr(transcoder)


@pytest.mark.parametrize("kernels", ["reference", "sparse"])
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_autocast_changes_no_bit(llama: LanguageModel, kernels: str, case: int, architecture: str) -> None:
    """Including `change` and `part`, which `attach` uses."""
    coder = made(llama, SITE, architecture=architecture, kernels=kernels, **CASES[case])
    x = torch.randn(64, 24)

    def everything() -> list[Tensor]:
        codes = coder.encode(x)
        latents = torch.tensor([1, 2])
        change = coder.change(latents, codes.columns(latents), x)
        return [codes.tensor(), coder.decode(codes, x), coder.part(codes, x), change]

    plain = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = everything()
    for one, other in zip(plain, cast, strict=True):
        assert one.dtype == other.dtype == coder.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("kernels", ["reference", "sparse"])
@pytest.mark.parametrize("architecture", SELECTING)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_not_hidden(
    llama: LanguageModel, architecture: str, kernels: str, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of other rows do not change either."""
    monkeypatch.setattr(inference, "_MOST", 1.0)
    coder = made(llama, SITE, architecture=architecture, kernels=kernels)
    x = torch.randn(3, 24)
    clean = coder.encode(x).tensor()
    x[1, ::2], x[1, 1::2] = bad, -bad
    codes = coder.encode(x)
    assert not codes.tensor()[1].isfinite().all()
    assert not coder.decode(codes)[1].isfinite().any()
    torch.testing.assert_close(codes.tensor()[[0, 2]], clean[[0, 2]])


def test_codes_are_decoded_with_their_own_rows(llama: LanguageModel) -> None:
    """As many of them, in any leading shape; also where the rows do not matter."""
    cases: list[dict[str, Any]] = [{"skip": True}, {"normaliser": STANDARDISE}, {}]
    for fields in cases:
        coder = made(llama, SITE, name="c", **fields)
        x = torch.randn(4, 24)
        codes = coder.encode(x)
        with pytest.raises(UserError, match="coder 'c' received codes of 4 rows, but x has 1: give the rows"):
            coder.decode(codes, x[:1])
        assert torch.equal(coder.decode(codes, x.view(2, 2, 24)), coder.decode(codes, x))


@pytest.mark.parametrize("kernels", ["reference", "sparse"])
def test_codes_of_any_dtype_are_decoded(llama: LanguageModel, kernels: str) -> None:
    coder = made(llama, SITE, kernels=kernels)
    codes = coder.encode(torch.randn(4, 24))
    assert torch.equal(coder.decode(codes.with_values(codes.values.double())), coder.decode(codes))


def test_arrays_and_devices_that_are_not_here(llama: LanguageModel) -> None:
    coder = made(llama, SITE, name="c")
    array: Any = np.zeros((3, 24), np.float32)
    with pytest.raises(
        UserError, match=r"coder 'c' reads tensors, but x is a ndarray: convert it, for example with torch\.from"
    ):
        coder.encode(array)
    with pytest.raises(UserError, match="device 'gpu' cannot be used on this machine"):
        coder.to("gpu")
    assert coder.to(torch.device("cpu"), torch.float64).dtype == torch.float64


@pytest.mark.parametrize("kernels", ["reference", "sparse"])
def test_a_plain_tensor_is_decoded_and_vectors_are_at_hand(llama: LanguageModel, kernels: str) -> None:
    """Dense codes, as other tools give them."""
    coder = made(llama, SITE, kernels=kernels)
    x = torch.randn(2, 5, 24)
    codes = coder.encode(x)
    assert codes.shape == codes.tensor().shape == (2, 5, coder.width)
    torch.testing.assert_close(coder.decode(codes.tensor()), coder.decode(codes))
    torch.testing.assert_close(codes.tensor() @ coder.W_dec + coder.b_dec, coder.decode(codes))
    assert coder.W_enc.shape == (coder.width, 24) and not coder.W_enc.requires_grad
    with pytest.raises(UserError, match="has 20 latents, but the codes have 24"):
        coder.decode(x)
    with pytest.raises(UserError, match="codes is a scalar"):
        coder.decode(torch.tensor(1.0))
    assert coder.encode(torch.zeros(0, 24)).of(3).shape == (0,)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_calling_a_coder_reconstructs_and_its_parameters_can_be_read(llama: LanguageModel, architecture: str) -> None:
    coder = made(llama, Site(1, "resid_post"), architecture=architecture)
    x = torch.randn(2, 3, llama.d_model, generator=torch.Generator().manual_seed(1))
    assert torch.equal(coder(x), coder.decode(coder.encode(x), x))
    assert coder.config.architecture == architecture and coder.b_enc.shape == (coder.width,)
    if architecture == "topk":
        assert coder.threshold is None
        return
    assert coder.threshold is not None and coder.threshold.shape == (coder.width,)
    pre = x.reshape(6, -1) @ coder.W_enc.T + coder.b_enc
    if coder.config.pre_encoder_bias:
        pre = pre - coder.W_enc @ coder.b_dec
    assert torch.equal(coder.encode(x).tensor().reshape(6, -1) > 0, pre > coder.threshold)
