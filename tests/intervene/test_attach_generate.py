"""Generation with and without a cache reads and edits the same latents, at positions that continue between passes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.intervene.attach import Attached, attach
from panscope.intervene.edits import Edit, Steer
from panscope.lms.hf_versions import cache_in_output
from panscope.lms.model import LanguageModel
from panscope.types import Site
from tests.support.attached import F, forward, made, with_cache

PROMPT = torch.tensor([[5, 9, 4, 11], [7, 7, 30, 3]])
LAYOUTS = {"topk": "topk", "jumprelu": "jumprelu", "sparse kernels": "jumprelu"}


def generate(lm: LanguageModel, **options: Any) -> Tensor:
    fixed = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    return lm.model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **fixed, **options)  # pyright: ignore


def same(one: Attached, two: Attached) -> None:
    assert one.positions == two.positions == range(9)
    for name in one.latents:
        assert one.latents[name].leading == two.latents[name].leading == (2, 9)
        near(one.latents[name].tensor(), two.latents[name].tensor())
    for site in one.activations:
        near(one.activations[site], two.activations[site])


def near(found: Tensor, expected: Tensor) -> None:
    """Equal up to the order of float32 sums; some trained models have very large rows."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_a_cache_changes_nothing_of_what_is_read(lm: LanguageModel) -> None:
    coders = [made(lm, Site(0, "mlp_out")), made(lm, Site(1, "resid_post"), architecture="jumprelu")]
    plain = generate(lm)
    with attach(lm, coders) as cached:
        assert torch.equal(generate(lm), plain)
    with attach(lm, coders) as whole:
        assert torch.equal(generate(lm, use_cache=False), plain)
    same(cached, whole)
    with attach(lm, coders) as once:
        forward(lm, (plain[:, :-1], torch.ones_like(plain[:, :-1])))
    same(cached, once)
    assert cached.latents[coders[0].name].tensor().any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edits_at_positions_that_come_while_generating(llama: LanguageModel, layout: str) -> None:
    kernels = "sparse" if layout == "sparse kernels" else "reference"
    coder = made(llama, Site(1, "resid_post"), architecture=LAYOUTS[layout], name="c", kernels=kernels)
    edits: list[Edit] = [Steer("c", (1, 2), 6.0, positions=slice(6, None)), Steer("c", 5, 4.0, positions=(2, 7))]
    late: list[Edit] = [Steer("c", 1, 60.0, positions=slice(6, None))]
    with attach(llama, coder, edits=edits) as cached:
        first = generate(llama)
    with attach(llama, coder, edits=edits) as whole:
        second = generate(llama, use_cache=False)
    assert torch.equal(first, second)
    same(cached, whole)
    assert cached.latents["c"].width == F
    with attach(llama, coder, edits=late):
        third = generate(llama)
    plain = generate(llama)
    assert torch.equal(third[:, :7], plain[:, :7])  # the token after position 6 is the first that can differ
    assert not torch.equal(third, plain)


def test_a_new_pass_puts_the_last_one_aside(llama: LanguageModel) -> None:
    coder = made(llama, Site(1, "resid_post"), name="c")
    with attach(llama, coder) as seen:
        generate(llama)
        forward(llama, (PROMPT[:1, :3], torch.ones(1, 3)))
        assert seen.latents["c"].leading == (1, 3)
        generate(llama)
        assert seen.latents["c"].leading == (2, 9)
    assert seen.latents["c"].leading == (2, 9)


def test_passes_without_the_head_are_passes_too(lm: LanguageModel, tokens: tuple[Tensor, Tensor]) -> None:
    """The body may be called alone, several times: each call is a pass of its own and does not continue the last."""
    body = lm.model.get_submodule(lm.family.blocks.rpartition(".")[0])
    coder = made(lm, Site(0, "resid_post"), name="c")
    with torch.no_grad(), attach(lm, coder) as seen:
        for _ in range(3):
            body(input_ids=tokens[0], attention_mask=tokens[1])
    assert seen.latents["c"].leading == tuple(tokens[0].shape)
    assert seen.positions == range(tokens[0].shape[1])


def test_passes_before_and_a_cache_that_was_cut(llama: LanguageModel) -> None:
    """Tokens cached before `attach` count in positions; the records of removed tokens are dropped."""
    ids = torch.cat([PROMPT, PROMPT + 1], dim=1)
    for architecture in ("topk", "jumprelu", "relu"):
        coder = made(llama, Site(1, "resid_post"), architecture=architecture, name="c")
        with torch.no_grad():
            cache = cache_in_output(llama.model(input_ids=ids[:, :2], use_cache=True))
            with attach(llama, coder) as seen:
                llama.model(input_ids=ids[:, 2:6], **with_cache(llama, cache), use_cache=True)
                assert seen.positions == range(2, 6)
                cache.crop(-1)
                llama.model(input_ids=ids[:, 5:], **with_cache(llama, cache), use_cache=True)
            assert seen.positions == range(2, 8)
            with attach(llama, coder) as whole:
                llama.model(input_ids=ids)
        found, expected = seen.latents["c"], whole.latents["c"]
        torch.testing.assert_close(found.tensor(), expected.tensor()[:, 2:], rtol=1e-4, atol=1e-5)
