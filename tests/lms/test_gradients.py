"""Gradients at sites, against finite differences in float64 and against an independent use of autograd.

Shape letters: N sequences, T tokens per sequence, D width of a site, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from panscope.lms.model import LanguageModel
from panscope.site_kinds import KINDS
from panscope.types import SITE_KINDS, Site

Tokens = tuple[Tensor, Tensor]
FAMILIES = ("gpt2", "gpt_neox", "gemma2")
"""A norm before each sublayer; parallel sublayers; norms before and after each sublayer."""
WITH_GRADIENT = tuple(kind for kind in SITE_KINDS if kind != "mlp_in_no_gain")
STEPS = {"gpt2": (1e-5, 1e-6), "gpt_neox": (1e-5, 1e-6), "gemma2": (5e-4, 1e-2)}
"""Step size and tolerance of the finite differences: Gemma computes norms in float32 in any dtype, whose noise of 1e-7
requires larger steps, with a larger error from curvature."""


def objective(logits: Tensor) -> Tensor:
    """A scalar of the logits at some positions with distinct weights, so that positions cannot be confused."""
    g = torch.Generator().manual_seed(4)
    return (logits * torch.randn(logits.shape, generator=g).to(logits)).sum() / logits.shape[-1]


def sites_of(lm: LanguageModel) -> list[Site]:
    return [Site(layer, kind) for layer in range(lm.n_layers) for kind in WITH_GRADIENT]


@pytest.mark.parametrize(("family", "step", "tolerance"), [(family, *STEPS[family]) for family in FAMILIES])
def test_they_are_what_small_steps_give(
    family: str, step: float, tolerance: float, make_lm: Callable[[str], LanguageModel], tokens: Tokens
):
    """In a random direction at every token of every site: (f(x + s) - f(x - s)) / 2, in float64."""
    lm, g = make_lm(family), torch.Generator().manual_seed(9)
    lm.model.double()
    gradients = lm.gradients(*tokens, sites_of(lm), objective)
    assert list(gradients) and set(gradients) == set(sites_of(lm))
    for site, gradient in gradients.items():
        direction = torch.randn(gradient.shape, generator=g, dtype=torch.float64)
        direction[~tokens[1]] = 0  # padding is ignored
        up, down = (
            lm.run(*tokens, splice={site: lambda x, change=change: x + change}, logits=True).logits
            for change in (step * direction, -step * direction)
        )
        assert up is not None
        assert down is not None
        steps = float(objective(up) - objective(down)) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(steps, rel=tolerance, abs=tolerance), site


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_what_autograd_finds_from_noise_put_in_at_one_site(
    family: str, make_lm: Callable[[str], LanguageModel], tokens: Tokens
):
    """One site at a time: the gradient for zeros added to the site by hooks of this test."""
    lm = make_lm(family)
    together = lm.gradients(*tokens, sites_of(lm), objective)
    for site in sites_of(lm):
        kind = KINDS[site.kind]
        module = lm.model.get_submodule(f"{lm.family.blocks}.{site.layer}").get_submodule(kind.module(lm.family))
        nothing = torch.zeros_like(together[site]).requires_grad_()
        ids, mask = tokens
        with adding(module, nothing, at_input=kind.end == "input"):
            logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        (expected,) = torch.autograd.grad(objective(logits), [nothing])
        assert torch.allclose(together[site], expected, rtol=1e-4, atol=1e-6), site
        assert expected.any(), site


@contextmanager
def adding(module: nn.Module, extra: Tensor, *, at_input: bool) -> Iterator[None]:
    """A context in which `extra` is added to the input or output of a module."""

    def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] + extra, *inputs[1:])

    def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> object:
        return (output[0] + extra, *output[1:]) if isinstance(output, tuple) else output + extra

    handle = module.register_forward_pre_hook(before) if at_input else module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def test_every_family_has_them_and_is_left_as_it_was(lm: LanguageModel, tokens: Tokens):
    before = lm.run(*tokens, logits=True).logits
    gradients = lm.gradients(*tokens, sites_of(lm), objective)
    after = lm.run(*tokens, logits=True).logits
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert not after.requires_grad
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in lm.model.parameters())
    for site, gradient in gradients.items():
        assert gradient.shape == (3, 9, lm.width(site))
        assert gradient.isfinite().all()
        assert gradient[tokens[1]].any(dim=1).all(), site
        assert not gradient.requires_grad


def test_one_site_alone_has_the_gradient_it_has_among_all(lm: LanguageModel, tokens: Tokens):
    """The gradient of a site does not depend on which other sites, before or after it, are requested."""
    together = lm.gradients(*tokens, sites_of(lm), objective)
    for site in (Site(0, "attn_out"), Site(1, "resid_post"), Site(lm.n_layers - 1, "mlp_out")):
        alone = lm.gradients(*tokens, [site], objective)
        assert torch.allclose(alone[site], together[site], rtol=1e-5, atol=1e-7), site


def test_a_token_moves_no_prediction_before_it(lm: LanguageModel, tokens: Tokens):
    """The gradient of the prediction at token 3 of the first sequence is 0 at later tokens and other sequences."""
    site = Site(1, "resid_post")
    gradient = lm.gradients(*tokens, [site], lambda logits: logits[0, 3, 5])[site]
    assert gradient[0, 3].any()
    assert not gradient[0, 4:].any()
    assert not gradient[1:].any()


def test_it_works_where_gradients_are_off(lm: LanguageModel, tokens: Tokens):
    site = Site(0, "mlp_out")
    with torch.no_grad():
        assert lm.gradients(*tokens, [site], objective)[site].any()
