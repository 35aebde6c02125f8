"""Gradients through attached coders, against finite differences and passes without coders; nested `attach`.

Shape letters: N sequences, T tokens, D width of a site, F latents.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.coders.wiring import UNIT
from panscope.intervene.attach import attach
from panscope.intervene.edits import Ablate, Clamp, Edit, Edits, Steer
from panscope.lms.model import LanguageModel
from panscope.loading.loaded_coder import LoadedCoder
from panscope.types import SITE_KINDS, Site
from tests.support.attached import STANDARDISE, forward, made

Tokens = tuple[Tensor, Tensor]
SITE = Site(1, "resid_post")
OPTIONS: dict[str, dict[str, Any]] = {
    "an edit": {"edits": [Steer("c", 3, 0.0, positions=8)]},
    "a reconstruction": {"splice": {"c": [8]}},
}


def embedded(llama: LanguageModel, tokens: Tokens) -> Tensor:
    model: Any = llama.model
    return model.get_input_embeddings()(tokens[0]).detach().requires_grad_()


def slopes(llama: LanguageModel, e: Tensor, until: int = 9) -> Tensor:
    logits = llama.model(inputs_embeds=e, use_cache=False).logits
    return torch.autograd.grad(logits[:, :until].square().sum(), [e])[0]


@pytest.mark.parametrize("what", OPTIONS)
def test_a_constant_at_one_position_leaves_the_gradients_of_others(
    what: str, llama: LanguageModel, tokens: Tokens
) -> None:
    """Logits before that position do not change, nor do their gradients."""
    e, coder = embedded(llama, tokens), made(llama, SITE, name="c")
    expected = slopes(llama, e, until=8)
    with attach(llama, coder, **OPTIONS[what]):
        torch.testing.assert_close(slopes(llama, e, until=8), expected)
    assert expected.any()


def test_what_is_put_in_is_a_constant_what_is_added_stands_beside(llama: LanguageModel, tokens: Tokens) -> None:
    e, coder = embedded(llama, tokens), made(llama, SITE, name="c")
    with attach(llama, coder, splice=True):
        assert not slopes_or_none(llama, e).any()
    constant = 2.0 * coder.wired.coder.W_dec[3]

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        return (output[0] + constant, *output[1:]) if isinstance(output, tuple) else output + constant

    handle = llama.site_resolver.blocks[1].register_forward_hook(add)
    expected = slopes(llama, e)
    handle.remove()
    with attach(llama, coder, edits=Steer("c", 3, 2.0)):
        torch.testing.assert_close(slopes(llama, e), expected)


def slopes_or_none(llama: LanguageModel, e: Tensor) -> Tensor:
    logits = llama.model(inputs_embeds=e, use_cache=False).logits
    if not logits.requires_grad:
        return torch.zeros_like(e)
    (found,) = torch.autograd.grad(logits.sum(), [e], allow_unused=True)
    return torch.zeros_like(e) if found is None else found


def direction_of(e: Tensor) -> Tensor:
    return torch.randn(e.shape, generator=torch.Generator().manual_seed(2), dtype=e.dtype)


@pytest.mark.parametrize("positions", [None, slice(3, None)], ids=["everywhere", "from 3 on"])
@pytest.mark.parametrize("normalised", [False, True])
def test_gradients_through_a_reconstruction_are_those_of_the_function(
    positions: Any, normalised: bool, make_lm: Any, tokens: Tokens
) -> None:
    """Spliced with gradients, without error term: the gradient for the embeddings, against finite differences."""
    lm = make_lm("gpt2")
    lm.model.double()
    coder = made(lm, SITE, architecture="relu", name="c", normaliser=STANDARDISE if normalised else UNIT)
    e = embedded(lm, tokens)
    direction = direction_of(e)

    def value(point: Tensor) -> Tensor:
        return lm.model(inputs_embeds=point, use_cache=False).logits.square().sum()

    with attach(lm, coder, splice={"c": positions}, gradients=True):
        (found,) = torch.autograd.grad(value(e), [e])
        with torch.no_grad():
            steps = (value(e + 1e-6 * direction) - value(e - 1e-6 * direction)) / 2e-6
    assert float((found * direction).sum()) == pytest.approx(float(steps), rel=1e-5)
    assert found.any()


def test_codes_have_gradients_where_nothing_is_replaced_too(llama: LanguageModel, tokens: Tokens) -> None:
    coder = made(llama, SITE, name="q")

    def of_codes(**options: Any) -> Tensor:
        with attach(llama, coder, gradients=True, **options) as seen:
            logits = llama.model(input_ids=tokens[0], use_cache=False).logits
            (gradient,) = torch.autograd.grad(logits[:, 2].square().sum(), [seen.latents["q"].values])
        return seen.latents["q"].with_values(gradient).tensor()

    everywhere, later = of_codes(), of_codes(splice={"q": slice(3, None)})
    assert everywhere[:, :3].any()
    torch.testing.assert_close(later[:, :3], everywhere[:, :3])  # later positions do not affect token 2


@pytest.mark.parametrize("edit", [Ablate("b", list(range(20))), Clamp("b", [1, 2], 0.7), Steer("b", 4, 3.0)])
@pytest.mark.parametrize("splice", [{}, {"splice": {"b": slice(4, None)}}], ids=["edited", "spliced in part"])
def test_a_gradient_past_an_edit_is_a_derivative(
    edit: Edit, splice: dict[str, Any], make_lm: Any, tokens: Tokens
) -> None:
    """The gradient for an earlier coder's code while a later coder with standardised rows is edited: the later codes
    are constants because it is not spliced, so what its edits add does not depend on the earlier coder."""
    lm = make_lm("gpt2")
    lm.model.double()
    first = made(lm, Site(0, "resid_post"), name="a")
    later = made(lm, SITE, name="b", normaliser=STANDARDISE, architecture="relu")

    def value() -> Tensor:
        return lm.model(input_ids=tokens[0], use_cache=False).logits[:, :4].square().sum()

    with attach(lm, [first, later], edits=edit, gradients=True, **splice) as seen:
        (gradient,) = torch.autograd.grad(value(), [seen.latents["a"].values])
    rows, latents, _ = seen.latents["a"].entries()
    slope = seen.latents["a"].with_values(gradient).dense()[rows[0], latents[0]]
    place = int(rows[0]) % 9

    def added(coder: LoadedCoder) -> Tensor:
        """[B, D] what the edits of the later coder add in a pass without other changes."""
        with attach(lm, coder, edits=edit) as here:
            forward(lm, tokens_all(tokens))
        x = here.activations[SITE].flatten(0, 1)
        edits = Edits([edit], coder.width, coder.device)
        old = here.latents["b"].columns(edits.latents)
        return coder.change(edits.latents, edits.new(old, lambda _: None) - old, x)

    constant = added(later).view(3, 9, -1)
    vector = first.wired.coder.W_dec[latents[0]].detach()

    def at(step: float) -> float:
        def one(y: Tensor) -> Tensor:
            y = y.clone()
            y[int(rows[0]) // 9, place] += step * vector
            return y

        taken = {Site(0, "resid_post"): one, SITE: lambda y: y + constant}
        logits = lm.run(*tokens_all(tokens), splice=taken, logits=True).logits
        assert logits is not None
        return float(logits[:, :4].square().sum())

    assert float(slope) == pytest.approx((at(1e-6) - at(-1e-6)) / 2e-6, rel=1e-4, abs=1e-7)


def tokens_all(tokens: Tokens) -> Tokens:
    return tokens[0], torch.ones_like(tokens[1])


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_attaches_within_attaches_are_one(kind: str, lm: LanguageModel, tokens: Tokens) -> None:
    """Each coder reads the output of the one attached before it; edits at different places add up."""
    site = Site(1, kind)  # pyright: ignore[reportArgumentType]
    one, two = made(lm, site, name="one"), made(lm, site, name="two", architecture="relu")
    edits: dict[str, list[Edit]] = {"one": [Steer("one", 3, 2.0)], "two": [Steer("two", 5, 2.0)]}
    with attach(lm, one, edits=edits["one"]) as first, attach(lm, two, edits=edits["two"]) as second:
        nested = forward(lm, tokens)
    with attach(lm, [one, two], edits=[*edits["one"], *edits["two"]]):
        torch.testing.assert_close(nested, forward(lm, tokens), rtol=1e-4, atol=1e-5)
    change = 2.0 * one.wired.coder.W_dec[3]
    torch.testing.assert_close(second.activations[site], first.activations[site] + change, rtol=1e-4, atol=1e-5)
    assert not torch.equal(nested, forward(lm, tokens))
