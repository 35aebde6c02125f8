"""Attached coders against passes with manual splices, for every family and site; and that no hooks are left behind.

Shape letters: N sequences, T tokens, D width of a site, F latents.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.intervene.attach import attach
from panscope.intervene.edits import Ablate, Clamp, Edit, Steer
from panscope.lms.model import LanguageModel
from panscope.loading.loaded_coder import LoadedCoder
from panscope.types import SITE_KINDS, Site, UserError
from tests.support.attached import STANDARDISE, F, everywhere, forward, hooks_on, made

Tokens = tuple[Tensor, Tensor]
SITE = Site(1, "resid_post")


def spliced(lm: LanguageModel, tokens: Tokens, site: Site, change: Callable[[Tensor], Tensor]) -> Tensor:
    logits = lm.run(*tokens, splice={site: change}, logits=True).logits
    assert logits is not None
    return logits


def as_tuple(latents: Any) -> tuple[int, ...]:
    return (latents,) if isinstance(latents, int) else tuple(latents)


def by_hand(coder: LoadedCoder, edits: list[Edit], *, replaces: bool) -> Callable[[Tensor], Tensor]:
    """The definition, with every code of every row: y_hat of the edited codes, plus the reconstruction error."""

    def change(y: Tensor) -> Tensor:
        rows = y.reshape(-1, y.shape[-1])
        codes = coder.wired.encode(rows)
        y_hat = coder.wired.decode(codes, rows)
        new = codes.dense().view(*y.shape[:2], -1).clone()
        for edit in edits:
            where = slice(None) if edit.positions is None else edit.positions
            for latent in as_tuple(edit.latents):
                old = new[:, where, latent]
                new[:, where, latent] = old + edit.by if isinstance(edit, Steer) else getattr(edit, "value", 0.0)
        after = coder.wired.decode(type(codes)(new.view(-1, F), F), rows)
        return (after if replaces else rows + after - y_hat).view_as(y)

    return change


def test_reading_changes_no_bit_and_sees_what_is_there(lm: LanguageModel, tokens: Tokens) -> None:
    coders = everywhere(lm)
    clean = forward(lm, tokens)
    with attach(lm, coders, read=[SITE]) as seen:
        assert torch.equal(forward(lm, tokens), clean)
    sites = [coder.wiring.reads[0] for coder in coders]
    expected = lm.run(*tokens, read=[*sites, SITE]).activations
    assert set(seen.activations) == {*sites, SITE}
    assert all(torch.equal(seen.activations[site], expected[site]) for site in expected)
    assert seen.positions == range(9)
    for coder, site in zip(coders, sites, strict=True):
        codes = seen.latents[coder.name]
        own = coder.wired.encode(expected[site].flatten(0, 1)).dense()
        assert codes.leading == (3, 9)
        assert torch.equal(codes.tensor(), own.view(3, 9, F))
        assert codes.tensor().any()


def test_everything_spliced_with_its_error_gives_the_model(lm: LanguageModel, tokens: Tokens) -> None:
    coders, clean = everywhere(lm), forward(lm, tokens)
    with attach(lm, coders, splice=True, error_term=True):
        assert torch.equal(forward(lm, tokens), clean)
    with attach(lm, coders, splice=True, error_term=True, gradients=True) as seen:
        logits = lm.model(input_ids=tokens[0], attention_mask=tokens[1]).logits
    torch.testing.assert_close(logits.detach(), clean, rtol=1e-5, atol=1e-5)
    assert logits.requires_grad
    assert all(codes.values.requires_grad for codes in seen.latents.values())


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_a_reconstruction_takes_its_place(lm: LanguageModel, tokens: Tokens, kind: str) -> None:
    coder = made(lm, Site(1, kind))
    expected = spliced(lm, tokens, Site(1, kind), by_hand(coder, [], replaces=True))
    for error_term, wanted in ((False, expected), (True, forward(lm, tokens))):
        with attach(lm, coder, splice=[coder.name], error_term=error_term):
            torch.testing.assert_close(forward(lm, tokens), wanted, rtol=1e-4, atol=1e-5)
    assert (expected - forward(lm, tokens)).abs().max() > 1e-3


EDITS: dict[str, list[Edit]] = {
    "ablate": [Ablate("c", list(range(0, F, 2)))],
    "clamp at places": [Clamp("c", (3, 4), 1.5, positions=(2, 5))],
    "steer from a place on": [Steer("c", 7, -2.0, positions=slice(4, None))],
    "one after the other": [Clamp("c", 3, 2.0), Steer("c", 3, 0.5, positions=1), Ablate("c", 3, positions=slice(6, 8))],
}


@pytest.mark.parametrize("edits", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_edits_are_those_made_by_hand(
    llama: LanguageModel, tokens: Tokens, edits: list[Edit], replaces: bool, architecture: str
) -> None:
    for site, normaliser in ((SITE, STANDARDISE), (Site(0, "mlp_in_no_gain"), STANDARDISE)):
        coder = made(llama, site, architecture=architecture, normaliser=normaliser, name="c")
        expected = spliced(llama, tokens, site, by_hand(coder, edits, replaces=replaces))
        with attach(llama, coder, splice=replaces, edits=edits) as seen:
            torch.testing.assert_close(forward(llama, tokens), expected, rtol=1e-4, atol=1e-5)
        rows = seen.activations[site].flatten(0, 1)
        assert torch.equal(seen.latents["c"].dense(), coder.wired.encode(rows).dense())  # the codes before edits
        assert (expected - forward(llama, tokens)).abs().max() > 1e-3


def test_every_family_is_edited_at_every_site(lm: LanguageModel, tokens: Tokens) -> None:
    for kind in SITE_KINDS:
        coder = made(lm, Site(1, kind), name="c")
        edits: list[Edit] = [Clamp("c", (0, 5), 1.0, positions=slice(3, None))]
        with attach(lm, coder, edits=edits):
            found = forward(lm, tokens)
        expected = spliced(lm, tokens, Site(1, kind), by_hand(coder, edits, replaces=False))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(found[:, :3], forward(lm, tokens)[:, :3])  # a token does not affect earlier predictions


def test_a_reconstruction_at_chosen_positions_only(llama: LanguageModel, tokens: Tokens) -> None:
    coder, clean = made(llama, SITE), forward(llama, tokens)
    with attach(llama, coder, splice={coder.name: slice(4, None)}):
        found = forward(llama, tokens)
    assert torch.equal(found[:, :4], clean[:, :4])
    assert not torch.equal(found[:, 4:], clean[:, 4:])


def test_two_coders_at_one_site_read_the_same_and_both_edit(llama: LanguageModel, tokens: Tokens) -> None:
    one, two = made(llama, SITE, name="one"), made(llama, SITE, architecture="jumprelu", name="two")
    edits: list[Edit] = [Clamp("one", 2, 3.0), Clamp("two", 4, 3.0)]

    def both(y: Tensor) -> Tensor:
        first, second = (
            by_hand(coder, [edit], replaces=False)(y) for coder, edit in zip((one, two), edits, strict=True)
        )
        return first + second - y

    with attach(llama, {"one": one, "two": two}, edits=edits):
        found = forward(llama, tokens)
    torch.testing.assert_close(found, spliced(llama, tokens, SITE, both), rtol=1e-4, atol=1e-5)


def test_a_transcoder_writes_where_it_predicts(lm: LanguageModel, tokens: Tokens) -> None:
    reads, predicts = Site(1, "mlp_in_no_gain"), Site(1, "mlp_out")
    coder = made(lm, reads, predicts, skip=True, name="tc")
    x = lm.run(*tokens, read=[reads]).activations[reads].flatten(0, 1)
    y_hat = coder.wired.decode(coder.wired.encode(x), x)
    with attach(lm, coder, splice=True) as seen:
        found = forward(lm, tokens)
    expected = spliced(lm, tokens, predicts, lambda y: y_hat.view_as(y))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert set(seen.activations) == {reads, predicts}
    step = 2.0 * coder.wired.coder.W_dec[3]
    with attach(lm, coder, edits=[Steer("tc", 3, 2.0)]):
        found = forward(lm, tokens)
    torch.testing.assert_close(found, spliced(lm, tokens, predicts, lambda y: y + step), rtol=1e-4, atol=1e-5)


def test_a_multilayer_coder_is_one_coder_at_each_site(llama: LanguageModel, tokens: Tokens) -> None:
    sites = tuple(Site(layer, "resid_post") for layer in range(3))
    coder = made(llama, sites, wiring="multilayer", name="all", architecture="jumprelu")
    with attach(llama, coder) as seen:
        forward(llama, tokens)
    read = llama.run(*tokens, read=sites).activations
    expected = torch.stack([coder.wired.encode(read[site].flatten(0, 1)).dense().view(3, 9, F) for site in sites])
    assert seen.latents["all"].leading == (3, 3, 9)
    assert torch.equal(seen.latents["all"].tensor(), expected)
    edits: list[Edit] = [Clamp("all", 1, 2.0, site=sites[1])]
    with attach(llama, coder, edits=edits):
        found = forward(llama, tokens)
    torch.testing.assert_close(found, spliced(llama, tokens, sites[1], by_hand(coder, edits, replaces=False)))


def test_a_crosscoder_is_read(llama: LanguageModel, tokens: Tokens) -> None:
    sites = (Site(0, "resid_post"), Site(2, "resid_post"))
    coder = made(llama, sites, wiring="crosscoder", name="cc")
    with attach(llama, coder) as seen:
        forward(llama, tokens)
    read = llama.run(*tokens, read=sites).activations
    x = torch.cat([read[site] for site in sites], dim=-1)
    assert torch.equal(seen.latents["cc"].tensor(), coder.encode(x).tensor())
    refused: list[dict[str, Any]] = [{"splice": True}, {"edits": [Ablate("cc", 0)]}]
    for options in refused:
        with pytest.raises(UserError, match="is a crosscoder"), attach(llama, coder, **options):
            pass


def test_a_model_is_left_as_it_was_after_errors(lm: LanguageModel, tokens: Tokens) -> None:
    coders, clean, before = everywhere(lm), forward(lm, tokens), hooks_on(lm.model)
    state = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}

    def fail(x: Tensor) -> Any:
        raise ZeroDivisionError

    broken = made(lm, Site(lm.n_layers - 1, "mlp_out"), name="broken")
    broken.encode = fail  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError), attach(lm, [*coders, broken], splice=[coders[0].name]):
        forward(lm, tokens)
    with pytest.raises(KeyError), attach(lm, coders, edits=[Ablate(coders[2].name, 0)]):
        assert hooks_on(lm.model) > before
        raise KeyError
    with pytest.raises(UserError), attach(lm, coders, edits=[Ablate("nobody", 0)]):
        pass
    with pytest.raises(IndexError), attach(lm, coders):
        forward(lm, (tokens[0] + 100_000, tokens[1]))
    assert hooks_on(lm.model) == before
    assert torch.equal(forward(lm, tokens), clean)
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.model.state_dict().items())


def test_a_hugging_face_model_that_may_learn_stays_so(llama: LanguageModel, tokens: Tokens) -> None:
    model: Any = llama.model.train().requires_grad_(True)
    coder = made(llama, SITE)
    try:
        with attach(model, coder, splice=True, gradients=True):
            model(input_ids=tokens[0]).logits.sum().backward()
        embeddings = model.get_input_embeddings().weight  # pyright: ignore
        assert embeddings.grad is not None and embeddings.grad.any()  # through the reconstruction
        assert model.training and all(parameter.requires_grad for parameter in model.parameters())
        with pytest.raises(UserError, match="give the causal language model itself"):
            attach(model.base_model, coder).__enter__()
        with pytest.raises(UserError, match="give a Hugging Face"):
            attach(torch.nn.Linear(2, 2), coder).__enter__()
    finally:
        model.eval().requires_grad_(False)


def test_sites_of_half_precision_models(make_lm: Callable[[str], LanguageModel], tokens: Tokens) -> None:
    lm = make_lm("llama")
    coder = made(lm, SITE, name="c")
    lm.model.bfloat16()
    clean = forward(lm, tokens)
    with attach(lm, coder, edits=[Steer("c", 3, 2.0, positions=5)]) as seen:
        found = forward(lm, tokens)
    assert found.dtype == seen.activations[SITE].dtype == torch.bfloat16
    assert torch.equal(found[:, :5], clean[:, :5]) and not torch.equal(found[:, 5], clean[:, 5])


def refuse(llama: LanguageModel, message: str, *coders: LoadedCoder, **options: Any) -> None:
    with pytest.raises(UserError, match=message), attach(llama, coders, **options):
        pass


def test_what_cannot_be_is_said(llama: LanguageModel, make_lm: Callable[[str], LanguageModel]) -> None:
    one = made(llama, SITE, name="one")
    two = made(llama, SITE, name="two")
    refuse(llama, "latent 20 of coder 'one' does not exist: it has 20", one, edits=[Ablate("one", 20)])
    refuse(llama, "coder 'nobody' is not attached: name one of one", one, edits=[Ablate("nobody", 2)])
    refuse(llama, "coder 'nobody' is not attached", one, splice=["nobody"])
    refuse(llama, "positions are -1: count them from 0", one, edits=[Ablate("one", 2, positions=-1)])
    refuse(llama, r"positions are slice\(-3", one, splice={"one": slice(-3, None)})
    refuse(
        llama,
        "site L00.mlp_out of an edit is not read by coder 'one'",
        one,
        edits=[Ablate("one", 2, site=Site(0, "mlp_out"))],
    )
    refuse(llama, "'one' and 'two' would both replace L01.resid_post", one, two, splice=True)
    refuse(llama, "two coders are both named 'one'", one, made(llama, SITE, name="one"))
    back = made(llama, Site(1, "mlp_out"), Site(0, "resid_post"), name="back")
    refuse(llama, "'back' predicts L00.resid_post, which comes before L01.mlp_out", back)
    wide = made(make_lm("qwen3"), Site(0, "attn_z"), name="wide")
    refuse(llama, "takes rows of 32 numbers at L00.attn_z, where this model has 24", wide)
    refuse(llama, "layer 9", made(make_lm("llama"), SITE), read=[Site(9, "mlp_out")])
