"""What every architecture promises, in every wiring: loss, gradients, codes, initial weights, weights in and out.

The oracle is written here again, in float64, from the papers' formulas. The coders run in float64 too, so that both
sides choose the same latents and differ by the rounding of sums only.

Shape letters: B rows, D input width, E output width, F latents, K active latents a row.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope import coders
from panscope.coders.base import Coder, CoderConfig
from panscope.coders.jumprelu import JumpReLUCoder
from panscope.types import Latents, UserError

B, D, F = 7, 6, 10
SPARSITY = {"relu": 0.3, "topk": 3, "jumprelu": 0.2}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "relu": [{}],
    "topk": [{"selection": "value"}, {"selection": "decoder_norm"}],
    "jumprelu": [{"bandwidth": 0.8, "threshold_init": 0.3}],
}
WIRINGS: dict[str, dict[str, Any]] = {
    "sae": {"d_out": D},
    "sae_pre_bias": {"d_out": D, "pre_encoder_bias": True},
    "transcoder": {"d_out": D + 3, "encoder_init": "own"},
    "transcoder_same_width": {"d_out": D, "encoder_init": "own"},
}
CASES = [
    pytest.param(architecture, shape | variant | {"decoder_norm": norm}, id="-".join([architecture, *variant.values()]
    if architecture == "topk" else [architecture]) + f"-{wiring}-{norm}")
    for architecture in coders.ARCHITECTURES
    for variant in VARIANTS[architecture]
    for wiring, shape in WIRINGS.items()
    for norm in ("unit", "free")
]  # fmt: skip
every_case = pytest.mark.parametrize(("architecture", "fields"), CASES)


def config_of(architecture: str, fields: dict[str, Any]) -> CoderConfig:
    shared = {"d_in": D, "width": F, "sparsity": SPARSITY[architecture]}
    return coders.config_type(architecture).read(shared | fields, "test")


def random_coder(architecture: str, fields: dict[str, Any], seed: int = 0) -> Coder:
    """Every parameter random, decoder vectors of unit norm where the configuration says so, in float64."""
    coder = coders.build(config_of(architecture, fields)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
        if isinstance(coder, JumpReLUCoder):
            coder.threshold.copy_(coder.threshold.abs() * 0.4 + 0.05)
        if coder.config.decoder_norm == "unit":
            coder.W_dec.div_(coder.W_dec.square().sum(dim=1, keepdim=True).sqrt())
    return coder


def random_rows(coder: Coder, seed: int = 1) -> tuple[Tensor, Tensor]:
    """x [B, D] and y [B, E]; both the same for an SAE."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, coder.config.d_in, generator=generator, dtype=torch.float64)
    y = torch.randn(B, coder.config.d_out, generator=generator, dtype=torch.float64)
    return x, x if coder.config.encoder_init == "transpose" else y


@dataclass
class Oracle:
    """Loss, codes, output and the gradient of every parameter, by an independent dense formula."""

    loss: Tensor
    codes: Tensor
    y_hat: Tensor
    gradients: dict[str, Tensor]


def active_latents(coder: Coder, pre: Tensor, k: int) -> Tensor:
    """[B, F] of 0 and 1: which latents the papers keep, one row at a time."""
    w, kept = coder.tensors(), torch.zeros_like(pre)
    norms = w["W_dec"].square().sum(dim=1).sqrt()
    for b in range(len(pre)):
        scores = {f: float(pre[b, f]) for f in range(F)}
        if coder.config.architecture == "topk":
            by_norm = getattr(coder.config, "selection", "") == "decoder_norm"
            rank = sorted(scores, key=lambda f: scores[f] * (float(norms[f]) if by_norm else 1.0), reverse=True)
            chosen = [f for f in rank[:k] if scores[f] > 0]
        elif coder.config.architecture == "jumprelu":
            chosen = [f for f in scores if scores[f] > float(w["threshold"][f])]
        else:
            chosen = [f for f in scores if scores[f] > 0]
        kept[b, chosen] = 1.0
    return kept


def oracle_of(coder: Coder, x: Tensor, y: Tensor, sparsity: float) -> Oracle:
    w = {name: tensor.clone().requires_grad_() for name, tensor in coder.tensors().items() if name != "threshold"}
    centred = x - w["b_dec"] if coder.config.pre_encoder_bias else x
    pre = torch.einsum("bd,fd->bf", centred, w["W_enc"]) + w["b_enc"]
    kept = active_latents(coder, pre.detach(), int(sparsity))
    codes = pre * kept
    codes.retain_grad()
    y_hat = torch.einsum("bf,fe->be", codes, w["W_dec"]) + w["b_dec"]
    loss = ((y_hat - y) ** 2).sum() / len(x)
    if coder.config.architecture == "relu":
        loss = loss + sparsity * torch.einsum("bf,f->", codes, (w["W_dec"] ** 2).sum(dim=1).sqrt()) / len(x)
    loss.backward()
    assert codes.grad is not None
    gradients = {name: tensor.grad for name, tensor in w.items() if tensor.grad is not None}
    if isinstance(coder, JumpReLUCoder):
        loss = loss + sparsity * kept.sum() / len(x)
        gradients["threshold"] = threshold_gradient(coder, pre.detach(), codes.grad, sparsity)
    return Oracle(loss.detach(), codes.detach(), y_hat.detach(), gradients)


def threshold_gradient(coder: JumpReLUCoder, pre: Tensor, for_codes: Tensor, price: float) -> Tensor:
    """The straight-through estimate, by loops."""
    theta, eps, total = coder.threshold.detach(), coder.config.bandwidth, torch.zeros(F).double()
    for b in range(len(pre)):
        for f in range(F):
            t = float(theta[f])
            if abs(float(pre[b, f]) - t) < eps / 2:
                total[f] += -(t / eps) * float(for_codes[b, f]) - price / eps / len(pre)
    return total


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal but for the order of float64 additions."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_the_contract_covers_every_architecture() -> None:
    assert VARIANTS.keys() == coders.ARCHITECTURES.keys() == SPARSITY.keys()
    for architecture, (config, coder) in coders.ARCHITECTURES.items():
        assert config.model_fields["architecture"].default == architecture
        built = coders.build(config_of(architecture, {"d_out": D}))
        assert type(built) is coder
        assert type(built.config) is config


@every_case
def test_the_objective_is_the_papers_formula(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    x, y = random_rows(coder)
    for sparsity in (coder.config.sparsity, coder.config.sparsity * 2):
        expected, found = oracle_of(coder, x, y, sparsity), coder.objective(x, y, sparsity)
        assert found.loss.shape == ()
        assert_close(found.loss.detach(), expected.loss)
        assert_close(found.latents.dense().detach(), expected.codes)
        assert_close(found.y_hat.detach(), expected.y_hat)
        assert 0 < expected.codes.count_nonzero() < expected.codes.numel()


@every_case
def test_the_gradient_of_every_parameter(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    x, y = random_rows(coder)
    expected = oracle_of(coder, x, y, coder.config.sparsity).gradients
    coder.objective(x, y, coder.config.sparsity).loss.backward()
    assert expected.keys() == dict(coder.named_parameters()).keys()
    for name, parameter in coder.named_parameters():
        assert parameter.grad is not None
        assert expected[name].count_nonzero() > 0
        assert_close(parameter.grad, expected[name])


@every_case
def test_encode_gives_the_codes_of_the_objective(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    x, y = random_rows(coder)
    objective, codes = coder.objective(x, y, coder.config.sparsity), coder.encode(x)
    assert codes.width == F
    assert codes.dense().equal(objective.latents.dense())
    assert coder.decode(codes).equal(objective.y_hat)
    assert codes.values.min() >= 0


@every_case
def test_decode_takes_dense_and_sparse_codes_alike(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    w = coder.tensors()
    values, indices = torch.tensor([[2.0, 0.5], [0.0, 1.0]]).double(), torch.tensor([[3, 0], [9, 1]])
    by_hand = torch.stack([
        2.0 * w["W_dec"][3] + 0.5 * w["W_dec"][0] + w["b_dec"],
        1.0 * w["W_dec"][1] + w["b_dec"],
    ])  # fmt: skip
    sparse = Latents(values, F, indices)
    assert_close(coder.decode(sparse).detach(), by_hand)
    assert_close(coder.decode(Latents(sparse.dense(), F)).detach(), by_hand)


@every_case
@pytest.mark.parametrize("norm", [1.0, 0.25])
def test_initial_weights(architecture: str, fields: dict[str, Any], norm: float) -> None:
    if norm != 1 and fields.get("decoder_norm", "unit") == "unit":
        with pytest.raises(UserError, match="decoder_init_norm"):
            config_of(architecture, fields | {"decoder_init_norm": norm})
        return
    coder = coders.build(config_of(architecture, fields | {"decoder_init_norm": norm}))
    with torch.no_grad():
        for parameter in (coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec):
            parameter.fill_(7.0)
    assert coder.initialise(torch.Generator().manual_seed(5)) is coder
    # A float32 vector of 6 to 9 numbers is normalised to a few ulps.
    assert torch.allclose(coder.W_dec.norm(dim=1), torch.full((F,), norm), rtol=1e-6)
    assert torch.allclose(coder.W_enc.norm(dim=1), torch.full((F,), norm), rtol=1e-6)
    assert coder.b_enc.count_nonzero() == 0
    assert coder.b_dec.count_nonzero() == 0
    if coder.config.encoder_init == "transpose":
        assert coder.W_enc.equal(coder.W_dec)
    else:
        cosines = coder.W_enc[:, :D] @ coder.W_dec[:, :D].T / norm**2
        assert cosines.diagonal().abs().max() < 0.99
    directions = coder.W_dec / norm
    assert (directions @ directions.T - torch.eye(F)).abs().max() < 0.99


@every_case
def test_initial_weights_come_from_the_generator_alone(architecture: str, fields: dict[str, Any]) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.seed())
        return coders.build(config_of(architecture, fields)).initialise(torch.Generator().manual_seed(seed)).tensors()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["W_dec"].equal(other["W_dec"])


@every_case
def test_tensors_go_round(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields).float()
    stored = coder.tensors()
    fresh = coders.build(coder.config)
    assert fresh.load_tensors(stored) is fresh
    found = fresh.tensors()
    assert found.keys() == stored.keys()
    assert all(found[name].equal(stored[name]) for name in stored)


@every_case
def test_tensors_are_copies(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    before, given = coder.tensors(), coder.tensors()
    for tensor in given.values():
        tensor.fill_(3.0)
        assert not tensor.requires_grad
    assert all(tensor.equal(before[name]) for name, tensor in coder.tensors().items())
    fresh = coders.build(coder.config).double().load_tensors(before)
    before["W_enc"].fill_(3.0)
    assert fresh.W_enc.equal(coder.W_enc)


@pytest.mark.parametrize("architecture", coders.ARCHITECTURES)
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_weights_of_another_shape_are_refused(architecture: str, name: str) -> None:
    """Also those that could be stretched to fit."""
    coder = random_coder(architecture, {"d_out": D})
    stored = coder.tensors()
    stored[name] = stored[name][:1]
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        coders.build(coder.config).load_tensors(stored)


@every_case
def test_state_dict_goes_round(architecture: str, fields: dict[str, Any]) -> None:
    coder, other = random_coder(architecture, fields), random_coder(architecture, fields, seed=9)
    other.load_state_dict(coder.state_dict())
    x, _ = random_rows(coder)
    assert other.encode(x).dense().equal(coder.encode(x).dense())


@pytest.mark.parametrize("selection", ["value", "decoder_norm"])
def test_topk_follows_the_sparsity_in_force(selection: str) -> None:
    """A schedule may ask for more than the configured K, for fractions and for more than the width."""
    coder = random_coder("topk", {"d_out": D, "selection": selection, "decoder_norm": "free"})
    x, y = random_rows(coder)
    positive = (coder.preactivations(x) > 0).sum(dim=1)
    for sparsity, k in ((1, 1), (2.4, 2), (4.6, 5), (F, F), (F + 5, F)):
        found = coder.objective(x, y, sparsity)
        assert found.latents.l0().tolist() == positive.clamp(max=k).tolist()


def test_norms_that_rank_get_no_gradient_from_ranking() -> None:
    """Eq. 5 chooses by the norms; the decoder's gradient is that of the squared error alone (the oracle's)."""
    coder = random_coder("topk", {"d_out": D, "selection": "decoder_norm", "decoder_norm": "free"})
    x, y = random_rows(coder)
    coder.objective(x, y, 3).loss.backward()
    unused = [f for f in range(F) if f not in coder.encode(x).indices[coder.encode(x).values > 0]]  # type: ignore[index]
    assert coder.W_dec.grad is not None
    assert coder.W_dec.grad[unused].count_nonzero() == 0


@every_case
def test_codes_and_loss_follow_the_coders_precision(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    x, y = random_rows(coder)
    for dtype in (torch.float64, torch.float32):
        found = coder.to(dtype).objective(x.to(dtype), y.to(dtype), coder.config.sparsity)
        assert found.loss.dtype == found.y_hat.dtype == found.latents.values.dtype == dtype


@every_case
def test_the_constraint_brings_vectors_to_norm_one_only_where_asked(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    with torch.no_grad():
        coder.W_dec.mul_(1.5)
        coder.W_dec[0].zero_()
    before = coder.tensors()
    coder.constrain()
    after, norms = coder.tensors(), before["W_dec"].square().sum(dim=1, keepdim=True).sqrt()
    expected = before["W_dec"]
    if coder.config.decoder_norm == "unit":
        expected = torch.where(norms > 0, before["W_dec"] / norms, 0.0)
    assert_close(after["W_dec"], expected)
    assert all(after[name].equal(before[name]) for name in after if name != "W_dec")


def test_the_constraint_keeps_thresholds_above_zero() -> None:
    coder = random_coder("jumprelu", {"d_out": D})
    assert isinstance(coder, JumpReLUCoder)
    with torch.no_grad():
        coder.threshold[:2] = torch.tensor([-0.3, 0.0]).double()
    before = coder.tensors()["threshold"]
    coder.constrain()
    assert (coder.threshold[:2] > 0).all()
    assert (coder.threshold[:2] < 1e-30).all()
    assert coder.threshold[2:].equal(before[2:])


@every_case
def test_a_small_step_along_the_projected_gradient_keeps_unit_norms(architecture: str, fields: dict[str, Any]) -> None:
    """The squared norm of w + h g is 1 + h^2 |g|^2 where g is orthogonal to w; a free decoder's gradient stays."""
    coder = random_coder(architecture, fields)
    x, y = random_rows(coder)
    coder.objective(x, y, coder.config.sparsity).loss.backward()
    assert coder.W_dec.grad is not None
    before = coder.W_dec.grad.clone()
    others = {name: p.grad.clone() for name, p in coder.named_parameters() if p.grad is not None and name != "W_dec"}
    coder.project_gradient()
    after, directions = coder.W_dec.grad, coder.W_dec.detach()
    if coder.config.decoder_norm == "free":
        assert after.equal(before)
    else:
        assert_close((after * directions).sum(dim=1), torch.zeros(F).double())
        assert_close(after - before, -directions * torch.einsum("fe,fe->f", before, directions)[:, None])
        assert (after - before).abs().max() > 1e-3
    assert all(coder.get_parameter(name).grad.equal(gradient) for name, gradient in others.items())  # type: ignore[union-attr]
