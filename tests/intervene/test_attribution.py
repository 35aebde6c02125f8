"""Activation times gradient, against finite differences, integrated edits and results by hand.

All in float64. Shape letters: N sequences, T tokens, V vocabulary, F latents.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panscope.coders.normaliser import Normaliser
from panscope.intervene.attach import attach
from panscope.intervene.attribution import Attribution, Logit, attribution
from panscope.intervene.edits import Ablate, Edit, Steer
from panscope.lms.model import LanguageModel
from panscope.loading.loaded_coder import LoadedCoder
from panscope.types import SITE_KINDS, Site, UserError
from tests.support.attached import F, everywhere, hooks_on, made

Tokens = tuple[Tensor, Tensor]
STEPS = {"gpt2": (1e-5, 1e-6), "gpt_neox": (1e-5, 1e-6), "qwen3": (1e-3, 1e-3), "gemma2": (1e-3, 2e-2)}
"""Step size and tolerance of the finite differences: Llama's and Gemma's families compute norms in float32 in any
dtype, whose noise requires larger steps."""
METRIC = Logit(5, position=7, minus=9)


def metric_with(lm: LanguageModel, tokens: Tokens, coder: LoadedCoder, *edits: Edit) -> float:
    """The metric of a pass with edits."""
    with torch.no_grad(), attach(lm, coder, edits=edits):
        return float(METRIC(lm.model(input_ids=tokens[0], attention_mask=tokens[1]).logits))


@pytest.fixture(params=STEPS)
def wide(request: pytest.FixtureRequest, make_lm: Callable[[str], LanguageModel]) -> tuple[LanguageModel, float, float]:
    lm = make_lm(request.param)
    lm.model.double()
    return lm, *STEPS[request.param]


def test_they_are_what_small_steps_give(wide: tuple[LanguageModel, float, float], tokens: Tokens) -> None:
    """The three largest effects at every site: (m(f + s) - m(f - s)) / 2 s, for one latent at one token."""
    lm, step, tolerance = wide
    coders = everywhere(lm)
    found = attribution(lm, coders, tokens[0], METRIC, attention_mask=tokens[1])
    for coder in coders:
        assert coder.dtype == torch.float64
        strongest = [place for place in found[coder.name].top(3 * 27) if place[0][0] == 0][:3]
        assert strongest, coder.name  # the largest effects in the first sequence
        for (_, position), latent, effect in strongest:
            up, down = (
                metric_with(lm, tokens, coder, Steer(coder.name, latent, by, positions=position))
                for by in (step, -step)
            )
            f = float(found[coder.name].codes.tensor()[0, position, latent])
            assert effect == pytest.approx(f * (up - down) / (2 * step), rel=tolerance, abs=tolerance), coder.name


@pytest.mark.parametrize("kind", ["resid_post", "mlp_in_no_gain", "attn_z"])
def test_gradients_along_a_latents_way_add_up_to_its_ablation(
    make_lm: Callable[[str], LanguageModel], tokens: Tokens, kind: str
) -> None:
    """m(f) - m(0) is the integral of the gradient from 0 to f (Gauss-Legendre, 30 points)."""
    lm = make_lm("gpt2")
    lm.model.double()
    coder = made(lm, Site(0, kind), name="c")
    found = attribution(lm, coder, tokens[0], METRIC, attention_mask=tokens[1])["c"]
    (_, position), latent, _ = next(place for place in found.top(100) if place[0][0] == 0)
    f = float(found.codes.tensor()[0, position, latent])
    total = 0.0
    for node, weight in zip(*np.polynomial.legendre.leggauss(30), strict=True):
        at = [Steer("c", latent, float((1 + node) / 2 - 1) * f, positions=position)]
        with attach(lm, coder, edits=at, gradients=True) as seen:
            value = METRIC(lm.model(input_ids=tokens[0], attention_mask=tokens[1]).logits)
            (gradient,) = torch.autograd.grad(value, [seen.latents["c"].values])
        slope = float(seen.latents["c"].with_values(gradient).tensor()[0, position, latent])
        total += float(weight) / 2 * slope * f
    whole = metric_with(lm, tokens, coder)
    ablated = metric_with(lm, tokens, coder, Ablate("c", latent, positions=position))
    assert whole - ablated == pytest.approx(total, rel=1e-7, abs=1e-10)
    assert abs(whole - ablated) > 1e-6


def by_hand(lm: LanguageModel, tokens: Tokens, coder: LoadedCoder) -> Tensor:
    """[N, T, F] f * (dm/dy . W_dec), from the gradient that `LanguageModel` finds at the site."""
    site = coder.wiring.predicts[0]
    slope = lm.gradients(*tokens, [site], METRIC)[site]
    x = lm.run(*tokens, read=[coder.wiring.reads[0]]).activations[coder.wiring.reads[0]]
    codes = coder.wired.encode(x.flatten(0, 1)).dense().view(*x.shape[:2], F)
    return codes * (slope @ coder.wired.coder.W_dec.T)


def test_every_family_all_coders_at_once(lm: LanguageModel, tokens: Tokens) -> None:
    """Each as if it were alone: gradients pass a later coder as if it were absent."""
    coders = everywhere(lm, tuple(kind for kind in SITE_KINDS if kind != "mlp_in_no_gain"))
    before, clean = hooks_on(lm.model), lm.run(*tokens, logits=True).logits
    with torch.no_grad():
        found = attribution(lm, coders, tokens[0], METRIC, attention_mask=tokens[1])
    for coder in coders:
        expected = by_hand(lm, tokens, coder)
        effects = found[coder.name].effects.tensor()
        torch.testing.assert_close(effects, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
        assert not found[coder.name].codes.values.requires_grad
        assert not effects[1:].any()  # other sequences
        assert not effects[0, 8:].any()  # a later token
    after = lm.run(*tokens, logits=True).logits
    assert clean is not None and after is not None and torch.equal(clean, after)
    assert hooks_on(lm.model) == before


def test_wide_coders_are_followed_on_their_active_places(llama: LanguageModel, tokens: Tokens) -> None:
    """The sparse kernels' codes, even and ragged, have the same gradients as dense codes."""
    for architecture in ("topk", "jumprelu", "batchtopk"):
        results: list[Attribution] = []
        for kernels in ("reference", "sparse"):
            coder = made(llama, Site(1, "resid_post"), architecture=architecture, name="c", kernels=kernels)
            assert coder.kernels == kernels
            results.append(attribution(llama, coder, tokens[0], METRIC)["c"])
        dense, sparse = results
        torch.testing.assert_close(sparse.effects.tensor(), dense.effects.tensor(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(sparse.by_latent(), dense.effects.tensor().sum(dim=(0, 1)), rtol=1e-4, atol=1e-6)


def test_transcoders_and_multilayer_coders(llama: LanguageModel, tokens: Tokens) -> None:
    transcoder = made(llama, Site(1, "mlp_in"), Site(1, "mlp_out"), name="tc")
    found = attribution(llama, transcoder, tokens[0], METRIC, attention_mask=tokens[1])["tc"]
    expected = by_hand(llama, tokens, transcoder)
    torch.testing.assert_close(found.effects.tensor(), expected, rtol=1e-3, atol=1e-6)
    sites = tuple(Site(layer, "resid_post") for layer in range(3))
    for architecture, kernels in (("topk", "reference"), ("jumprelu", "sparse"), ("relu", "reference")):
        options: dict[str, Any] = {"architecture": architecture, "kernels": kernels}
        whole = made(llama, sites, wiring="multilayer", name="all", **options)
        effects = attribution(llama, whole, tokens[0], METRIC, attention_mask=tokens[1])["all"].effects
        assert effects.leading == (3, 3, 9)
        for number, site in enumerate(sites):
            alone = LoadedCoder("one", made(llama, site).wired)
            alone.wired.coder = whole.wired.coder
            torch.testing.assert_close(effects.tensor()[number], by_hand(llama, tokens, alone), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["standardise", "token_norm", "none"])
def test_a_later_coder_is_as_if_it_were_not_there(llama: LanguageModel, tokens: Tokens, kind: Any) -> None:
    """Also a coder whose reconstruction scales with the norm of its rows, which earlier latents change."""
    first = made(llama, Site(0, "resid_post"), name="first")
    normaliser = Normaliser(kind=kind, scale_in=1, scale_out=1)
    later = made(llama, Site(1, "resid_post"), name="later", normaliser=normaliser)
    alone = attribution(llama, first, tokens[0], METRIC)["first"].effects.tensor()
    beside = attribution(llama, [first, later], tokens[0], METRIC)["first"].effects.tensor()
    assert alone.abs().max() > 0
    torch.testing.assert_close(beside, alone, rtol=1e-5, atol=1e-6)


def test_the_strongest_come_first(llama: LanguageModel, tokens: Tokens) -> None:
    coder = made(llama, Site(1, "resid_post"), name="c")
    found = attribution(llama, coder, tokens[0][0], Logit(5, position=7))["c"]  # one sequence [T]
    effects = found.effects.tensor()
    top = found.top(5)
    assert [abs(effect) for _, _, effect in top] == sorted((abs(effect) for _, _, effect in top), reverse=True)
    assert abs(top[0][2]) == pytest.approx(float(effects.abs().max()))
    for place, latent, effect in top:
        assert effect == pytest.approx(float(effects[(*place, latent)]))
    assert len(found.top(10_000)) == int((effects != 0).sum())


def test_what_cannot_be_attributed_is_said(llama: LanguageModel, tokens: Tokens) -> None:
    coder = made(llama, Site(1, "resid_post"), name="c")
    for metric in (lambda logits: logits[0], lambda logits: torch.tensor(3.0)):
        with pytest.raises(UserError, match="return a scalar that is a differentiable function"):
            attribution(llama, coder, tokens[0], metric)
    no_tensor: Any = lambda logits: logits.sum().item()  # noqa: E731
    with pytest.raises(UserError, match="the metric returns a float, which has no gradient"):
        attribution(llama, coder, tokens[0], no_tensor)
    with pytest.raises(UserError, match="coders is empty"):
        attribution(llama, [], tokens[0], METRIC)
    with torch.inference_mode(), pytest.raises(UserError, match=r"torch\.inference_mode forbids"):
        attribution(llama, coder, tokens[0], METRIC)
    sites = (Site(0, "resid_post"), Site(2, "resid_post"))
    cross = made(llama, sites, wiring="crosscoder", name="cc")
    with pytest.raises(UserError, match="is a crosscoder"):
        attribution(llama, cross, tokens[0], METRIC)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (Logit(99_999), "token of a Logit is 99999: the model has 40 tokens"),
        (Logit(-1), "token of a Logit is -1: the model has 40 tokens"),
        (Logit(5, minus=40), "minus of a Logit is 40: the model has 40 tokens"),
        (Logit(5, sequence=3), "sequence of a Logit is 3: there are 3"),
        (Logit(5, sequence=-1), "sequence of a Logit is -1: there are 3"),
        (Logit(5, position=9), "position of a Logit is 9: the sequence has 9 positions"),
        (Logit(5, position=-10), "position of a Logit is -10: the sequence has 9 positions"),
        (Logit(5, position=6, sequence=1), "position 6 of a Logit is padding: sequence 1 has 6 tokens that are not"),
        (Logit(5, position=-7, sequence=1), "position -7 of a Logit is padding: sequence 1 has 6 tokens that are not"),
    ],
)
def test_a_logit_that_is_not_there(llama: LanguageModel, tokens: Tokens, metric: Logit, message: str) -> None:
    coder = made(llama, Site(1, "resid_post"), name="c")
    with pytest.raises(UserError, match=message):
        attribution(llama, coder, tokens[0], metric, attention_mask=tokens[1])


def test_places_from_the_end_are_those_of_the_sequence_itself(llama: LanguageModel, tokens: Tokens) -> None:
    """Padding is not counted."""
    coder = made(llama, Site(1, "resid_post"), name="c")
    for position, place in ((-1, 5), (-6, 0)):
        asked = attribution(llama, coder, tokens[0], Logit(5, position, sequence=1), attention_mask=tokens[1])["c"]
        named = attribution(llama, coder, tokens[0], Logit(5, place, sequence=1), attention_mask=tokens[1])["c"]
        assert torch.equal(asked.gradients, named.gradients)
        assert asked.effects.tensor()[1, place].any()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_that_the_model_cannot_read(make_lm: Callable[[str], LanguageModel], kind: str, tokens: Tokens) -> None:
    lm = make_lm(kind)
    coder = made(lm, Site(1, "resid_post"), name="c")
    long = torch.ones(1, 33, dtype=torch.int64)
    for model in (lm, lm.model):
        with pytest.raises(UserError, match="33 tokens a sequence, but the model's context is 32"):
            attribution(model, coder, long, Logit(5))
    ids: Any = [3, 4, 5]
    with pytest.raises(UserError, match=r"token_ids is a list: give a tensor \[N, T\] or \[T\]"):
        attribution(lm, coder, ids, Logit(5))
    with pytest.raises(
        UserError, match=r"attention_mask is a tensor \(3, 8\): give a tensor of the shape of token_ids, a ten"
    ):
        attribution(lm, coder, tokens[0], Logit(5), attention_mask=tokens[1][:, :8])
    assert attribution(lm, coder, tokens[0][0], Logit(5), attention_mask=tokens[1][0])["c"].codes.leading == (1, 9)


def test_coders_that_come_one_by_one(llama: LanguageModel, tokens: Tokens) -> None:
    """A generator can be iterated once."""
    several: Any = (made(llama, Site(layer, "resid_post")) for layer in (0, 1))
    assert list(attribution(llama, several, tokens[0], METRIC)) == ["L00.resid_post-topk", "L01.resid_post-topk"]


def test_texts_in_place_of_ids(llama: LanguageModel, tokens: Tokens) -> None:
    coder = made(llama, Site(0, "resid_post"), name="c")
    ids, mask = llama.tokens("w5 w9 w11")
    found = attribution(llama, coder, "w5 w9 w11", Logit("w7", minus="w8"))["c"]
    expected = attribution(llama, coder, ids, Logit(7, minus=8), attention_mask=mask)["c"]
    assert torch.equal(found.gradients, expected.gradients) and found.gradients.any()
    with pytest.raises(UserError, match=r"token of a Logit is 'w7 w8', which is 2 tokens of this model \(\[7, 8\]\)"):
        attribution(llama, coder, ids, Logit("w7 w8"))
    with pytest.raises(UserError, match="give the token's id, or the model as `load_model` returns it"):
        attribution(llama.model, coder, ids, Logit("w7"))
    with pytest.raises(UserError, match="logits alone do not contain token texts"):
        Logit("w7")(torch.zeros(1, 2, 40))
