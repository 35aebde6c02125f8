"""Passes that start at a later block: bit-identical to full passes for every family, and no earlier block runs."""

import pytest
import torch
from torch import Tensor

from panscope.lms.model import LanguageModel, Start
from panscope.types import SITE_KINDS, Site

Tokens = tuple[Tensor, Tensor]


def start_at(lm: LanguageModel, tokens: Tokens, layer: int) -> Start:
    before = Site(layer - 1, "resid_post")
    return Start(layer, lm.run(*tokens, read=[before]).activations[before])


def noise_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).to(x.dtype)


def test_logits_and_activations_are_those_of_the_whole_pass(lm: LanguageModel, tokens: Tokens):
    for layer in range(1, lm.n_layers):
        sites = [Site(later, kind) for later in range(layer, lm.n_layers) for kind in SITE_KINDS]
        whole = lm.run(*tokens, read=sites, logits=True)
        begun = lm.run(*tokens, read=sites, logits=True, start=start_at(lm, tokens, layer))
        assert whole.logits is not None
        assert begun.logits is not None
        assert torch.equal(begun.logits, whole.logits)
        for site in sites:
            assert torch.equal(begun.activations[site], whole.activations[site]), site


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_a_splice_does_what_it_does_in_the_whole_pass(lm: LanguageModel, tokens: Tokens, kind: str):
    layer = lm.n_layers - 1
    change = {Site(layer, kind): lambda x: x + noise_like(x)}
    whole = lm.run(*tokens, splice=change, logits=True).logits
    begun = lm.run(*tokens, splice=change, logits=True, start=start_at(lm, tokens, layer)).logits
    assert whole is not None
    assert begun is not None
    assert torch.equal(whole, begun)


def test_earlier_blocks_are_not_run_and_come_back(lm: LanguageModel, tokens: Tokens):
    layer = lm.n_layers - 1
    start = start_at(lm, tokens, layer)
    lm.run(*tokens, logits=True, start=start)  # computes what is cached
    modules = [lm.model.get_submodule(f"{lm.family.blocks}.{n}") for n in range(lm.n_layers)]
    inner = [next(module.children()) for module in modules]
    runs = [0] * lm.n_layers

    def count(n: int) -> None:
        runs[n] += 1

    handles = [module.register_forward_hook(lambda *_, n=n: count(n)) for n, module in enumerate(inner)]
    try:
        lm.run(*tokens, logits=True, start=start)
        assert [bool(n) for n in runs] == [False] * layer + [True]
        lm.run(*tokens, logits=True)
        assert all(runs)
    finally:
        for handle in handles:
            handle.remove()
    assert not any("forward" in vars(module) for module in modules)


def test_blocks_come_back_after_an_error(lm: LanguageModel, tokens: Tokens):
    def fail(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    layer = lm.n_layers - 1
    start, before = start_at(lm, tokens, layer), lm.run(*tokens, logits=True).logits
    with pytest.raises(ZeroDivisionError):
        lm.run(*tokens, splice={Site(layer, "mlp_out"): fail}, logits=True, start=start)
    after = lm.run(*tokens, logits=True).logits
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)


def test_copies_of_a_batch_side_by_side(lm: LanguageModel, tokens: Tokens):
    """Several changed passes in one batch: each has its own rows, and all start from the same residual."""
    layer, copies = lm.n_layers - 1, 3
    site, start = Site(layer, "mlp_out"), start_at(lm, tokens, layer)
    ids, mask = (column.repeat(copies, 1) for column in tokens)
    assert start.residual is not None
    many = Start(layer, start.residual.repeat(copies, 1, 1))
    factors = torch.arange(1.0, copies + 1).repeat_interleave(len(tokens[0]))[:, None, None]
    together = lm.run(ids, mask, splice={site: lambda x: x * factors.to(x)}, logits=True, start=many).logits
    assert together is not None
    for n, logits in enumerate(together.chunk(copies)):
        alone = lm.run(*tokens, splice={site: lambda x, n=n: x * (n + 1.0)}, logits=True, start=start).logits
        assert alone is not None
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["attn_out", "mlp_out"])
def test_what_attention_or_mlp_give_can_be_given(lm: LanguageModel, tokens: Tokens, kind: str):
    """Bit-identical to a splice at that site, and the modules that compute it do not run."""
    for layer in range(lm.n_layers):
        site, before = Site(layer, kind), Site(layer, "attn_out")
        spliced: dict[Site, Tensor] = {}

        def splice(x: Tensor, site: Site = site, spliced: dict[Site, Tensor] = spliced) -> Tensor:
            spliced[site] = x + noise_like(x)
            return spliced[site]

        expected = lm.run(*tokens, splice={site: splice}, logits=True).logits
        known = {before: lm.run(*tokens, read=[before]).activations[before]}
        start = start_at(lm, tokens, layer) if layer else Start(0, None)
        begun = Start(layer, start.residual, known | spliced)
        block = lm.model.get_submodule(f"{lm.family.blocks}.{layer}")
        lm.run(*tokens, logits=True, start=begun)  # computes what is cached
        run: list[str] = []
        handles = [
            block.get_submodule(path).register_forward_hook(lambda *_, path=path, run=run: run.append(path))
            for path in (lm.family.w_o, *(["mlp.act_fn"] if kind == "mlp_out" and hasattr(block, "self_attn") else []))
        ]
        try:
            found = lm.run(*tokens, logits=True, start=begun).logits
        finally:
            for handle in handles:
                handle.remove()
        assert not run
        assert expected is not None
        assert found is not None
        assert torch.equal(found, expected)
