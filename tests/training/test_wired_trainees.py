"""Trainees over several sites, per-row normalisers and first biases, against their definitions in float64.

Shape letters: B rows of a site, S sites, D width of one, F latents.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.coders.normaliser import Normaliser, Part
from panscope.training.coder_trainer import CoderTrainer
from panscope.training.median import geometric_median
from panscope.types import ActivationBatch, Site
from tests.support.planted import TRAINING, WIDTH, D, batch, trainer, wired

S, B = 3, 16
LAYERS = tuple(range(S))
SITES = [Site(layer, "resid_post") for layer in LAYERS]
PLACED = list(enumerate(SITES))
MULTILAYER, CROSSCODER = wired("multilayer", *LAYERS), wired("crosscoder", *LAYERS)
STANDARDISE = Normaliser(kind="standardise", scale_in=1, scale_out=1)
PARTS = Normaliser(
    kind="unit_rms", scale_in=1, scale_out=1, parts=tuple(Part(width=D, scale=s) for s in (0.5, 0.1, 0.02))
)
MLSAE: dict[str, Any] = {"normaliser": "standardise", "loss": "fvu_scalar", "loss_space": "raw"}
PRE_BIAS: dict[str, Any] = {"pre_encoder_bias": True, "encoder_init": "transpose"}


def stacked(number: int) -> ActivationBatch:
    """[B, D] a layer; later layers are larger and further from 0."""
    g = torch.Generator().manual_seed(100 + number)
    rows = {site: (2.0**n) * torch.randn(B, D, generator=g) + n * torch.randn(D, generator=g) for n, site in PLACED}
    index = torch.arange(B)
    return ActivationBatch(rows, index, index, index)


def stepped(learner: CoderTrainer, rows: ActivationBatch) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """One step: its loss, the weights before it, the gradients that Adam was given."""
    before = {name: p.detach().double().requires_grad_() for name, p in learner.coder.named_parameters()}
    learner.step(rows, 1)
    given = {name: p.grad.double() for name, p in learner.coder.named_parameters() if p.grad is not None}
    return learner.read(2)["loss"], before, given


def top(pre: Tensor, k: int) -> Tensor:
    """[B, F]: the k largest of each row, then ReLU."""
    cut = pre.topk(k, dim=1).values[:, -1:]
    return torch.relu(pre * (pre >= cut))


def assert_gradients(loss: Tensor, weights: dict[str, Tensor], given: dict[str, Tensor], *, unit: bool) -> None:
    """`given` are the gradients of `loss`, for a unit decoder without their part along each vector."""
    names = list(given)
    for name, expected in zip(names, torch.autograd.grad(loss, [weights[name] for name in names]), strict=True):
        if name == "W_dec" and unit:
            directions = weights["W_dec"].detach()
            expected = expected - (expected * directions).sum(dim=1, keepdim=True) * directions
        scale = expected.abs().max().item()
        assert torch.allclose(given[name], expected, rtol=1e-4, atol=1e-5 * scale), name  # float32 against float64


def mlsae_loss(w: dict[str, Tensor], rows: ActivationBatch, k: int) -> Tensor:
    """Lawson et al.: standardise, encode, decode, undo; the FVU of each layer in raw space; the mean over layers."""
    fvus = []
    for site in SITES:
        x = rows.rows[site].double()
        middle, size = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        codes = top(((x - middle) / (size + 1e-5) - w["b_dec"]) @ w["W_enc"].T, k)
        x_hat = (codes @ w["W_dec"] + w["b_dec"]) * size + middle
        fvus.append((x_hat - x).square().mean() / (x - x.mean()).square().mean())
    return torch.stack(fvus).mean()


def test_the_multi_layer_saes_loss_from_its_definition():
    learner = trainer("topk", MLSAE, STANDARDISE, MULTILAYER, encoder_bias=False, **PRE_BIAS)
    for number in range(3):  # away from the first weights; the biases are not 0 any more
        learner.step(stacked(number), number)
    learner.meter.read()
    rows = stacked(7)
    loss, weights, given = stepped(learner, rows)
    expected = mlsae_loss(weights, rows, k=3)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert set(given) == {"W_enc", "W_dec", "b_dec"}
    assert_gradients(expected, weights, given, unit=True)


@pytest.mark.parametrize(
    "change", [{"loss_space": "normalised"}, {"loss": "fvu"}, {"loss": "squared_error"}], ids=lambda c: str(*c.values())
)
def test_each_setting_of_that_loss_matters(change: dict[str, Any]):
    """Or the test above could pass with any of them."""
    rows = stacked(7)
    learner = trainer("topk", MLSAE | change, STANDARDISE, MULTILAYER, encoder_bias=False, **PRE_BIAS)
    loss, weights, _ = stepped(learner, rows)
    assert loss != pytest.approx(mlsae_loss(weights, rows, k=3).item(), rel=1e-3)


@pytest.mark.parametrize("loss", ["squared_error", "fvu"])
def test_a_per_row_normaliser_without_undoing_is_measured_in_its_own_space(loss: str):
    """OpenAI's recipe: layer-normed rows are inputs, and what undoes into the rows themselves is the target."""
    learner = trainer("relu", {"normaliser": "standardise", "loss": loss}, STANDARDISE, wired("sae", 1), **PRE_BIAS)
    rows = stacked(3)
    found, w, given = stepped(learner, rows)
    x = rows.rows[SITES[1]].double()
    x, size = x - x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
    codes = torch.relu((x / (size + 1e-5) - w["b_dec"]) @ w["W_enc"].T + w["b_enc"])
    y = x / size
    errors = (codes @ w["W_dec"] + w["b_dec"] - y).square().sum(dim=1)
    main = errors.mean() if loss == "squared_error" else errors.sum() / (y - y.mean(dim=0)).square().sum()
    expected = main + 0.05 * (codes * w["W_dec"].norm(dim=1)).sum(dim=1).mean()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert_gradients(expected, w, given, unit=False)


def test_a_crosscoders_sites_are_concatenated_each_by_its_own_factor():
    """One code; the loss is the sum of the sites' squared errors in their normalised space."""
    learner = trainer("relu", {}, PARTS, CROSSCODER, d_in=S * D, d_out=S * D, width=24, **PRE_BIAS)
    rows = stacked(4)
    found, w, given = stepped(learner, rows)
    x = [rows.rows[site].double() * scale for site, scale in zip(SITES, (0.5, 0.1, 0.02), strict=True)]
    pre = w["b_enc"] + sum(
        (x[n] - w["b_dec"][n * D : (n + 1) * D]) @ w["W_enc"][:, n * D : (n + 1) * D].T for n in range(S)
    )
    codes = torch.relu(pre)
    made = [codes @ w["W_dec"][:, n * D : (n + 1) * D] + w["b_dec"][n * D : (n + 1) * D] for n in range(S)]
    errors = sum((a - b).square().sum(dim=1) for a, b in zip(made, x, strict=True))
    assert isinstance(errors, Tensor)
    expected = errors.mean() + 0.05 * (codes * w["W_dec"].norm(dim=1)).sum(dim=1).mean()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert_gradients(expected, w, given, unit=False)


def test_a_multilayer_coders_rows_stand_one_layer_under_the_other():
    """A step on S layers is a step of an SAE on the same rows as one batch."""
    scales = Normaliser(kind="unit_rms", scale_in=0.3, scale_out=0.3)
    whole, single = trainer("topk", {}, scales, MULTILAYER), trainer("topk", {}, scales, wired("sae", 0))
    for step in range(4):
        rows = stacked(step)
        whole.step(rows, step)
        index = torch.arange(S * B)
        together = {SITES[0]: torch.cat([rows.rows[site] for site in SITES])}
        single.step(ActivationBatch(together, index, index, index), step)
    for name, tensor in whole.coder.tensors().items():
        assert torch.equal(tensor, single.coder.tensors()[name])
    assert whole.read(4)["fvu"] == single.read(4)["fvu"]


def test_the_dead_window_counts_tokens_and_not_layers():
    """A latent of a multilayer coder that fires at no layer is dead after the window's tokens, whatever S is."""
    for wiring, sites in ((wired("sae", 0), 1), (MULTILAYER, S), (CROSSCODER, S)):
        width = D if wiring.wiring != "crosscoder" else S * D
        plain = Normaliser(kind="none", scale_in=1, scale_out=1)
        learner = trainer("relu", {"dead_window": 4 * B, "learning_rate": 1e-9}, plain, wiring, d_in=width, d_out=width)
        with torch.no_grad():
            learner.coder.b_enc[:3] = -1e6
            learner.coder.b_enc[3:] = 1e3
        shares = []
        for step in range(5):
            learner.step(stacked(step), step)
            shares.append(learner.clock.dead_fraction())
        assert shares == [0, 0, 0, 3 / WIDTH, 3 / WIDTH], sites


def test_active_means_above_what_the_recipe_says():
    """Codes of 5e-4 are active for L0, and not for a dead window that asks for 1e-3 (Gao et al.)."""
    for above, expected in ((0.0, 0.0), (1e-3, 1.0)):
        training = {"active_above": above, "dead_window": B, "learning_rate": 1e-12}
        learner = trainer("relu", training)
        with torch.no_grad():
            learner.coder.W_enc.zero_()
            learner.coder.b_enc.fill_(5e-4)
        learner.step(batch(0), 0)
        figures = learner.read(1)
        assert (figures["dead_fraction"], figures["l0"]) == (expected, WIDTH)


FIRST = stacked(0)
RAW = torch.cat([FIRST.rows[site] for site in SITES])
ROOT_D = Normaliser(kind="sqrt_d", scale_in=0.25, scale_out=4.0)


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("init", "scales", "wiring", "expected"),
    [
        ("zero", STANDARDISE, MULTILAYER, torch.zeros(1, D)),
        ("geometric_median", STANDARDISE, MULTILAYER, standardised(RAW)),
        ("geometric_median_raw", STANDARDISE, MULTILAYER, RAW),  # the Multi-Layer SAE's code
        ("geometric_median", ROOT_D, wired("sae", 2), 4.0 * FIRST.rows[SITES[2]]),
        (
            "geometric_median",
            PARTS,
            CROSSCODER,
            torch.cat([FIRST.rows[site] * s for site, s in zip(SITES, (0.5, 0.1, 0.02), strict=True)], dim=1),
        ),
    ],
    ids=["zero", "median", "raw", "scalar", "crosscoder"],
)
def test_the_first_bias_is_the_median_where_it_is_subtracted(
    init: str, scales: Normaliser, wiring: Any, expected: Tensor
):
    """The rate rises from 0, so the first step leaves the bias as it was put."""
    d = expected.shape[1]
    learner = trainer("topk", {"b_dec_init": init}, scales, wiring, d_in=d, d_out=d, **PRE_BIAS)
    learner.step(FIRST, 0)
    found = learner.coder.b_dec.detach().clone()
    assert torch.allclose(found, geometric_median(expected), rtol=1e-4, atol=1e-5)
    assert TRAINING["lr_warmup_steps"] > 0
    learner.step(stacked(1), 1)
    moved = (learner.coder.b_dec.detach() - found).abs().max().item()
    assert 0 < moved <= 0.01 * 1.01  # only by Adam: no second start


def test_a_transcoders_first_bias_is_the_median_of_what_it_predicts():
    learner = trainer("topk", {"b_dec_init": "geometric_median"})
    learner.step(batch(0), 0)
    (_, predicted) = batch(0).rows.values()
    assert torch.allclose(learner.coder.b_dec.detach(), geometric_median(3.0 * predicted), rtol=1e-4, atol=1e-5)
