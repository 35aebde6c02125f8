"""Every family and every trained model, at every kind of site: reading, writing back, changing, stopping early.

The truth is captured by plain hooks of this file's own, on module paths that are written down here a second time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from panscope.lms.model import LanguageModel
from panscope.site_kinds import KINDS
from panscope.types import SITE_KINDS, Site

Tokens = tuple[Tensor, Tensor]

LLAMA = {
    "resid_post": ("model.layers.{}", "output"),
    "attn_z": ("model.layers.{}.self_attn.o_proj", "input"),
    "attn_out": ("model.layers.{}.self_attn", "output"),
    "mlp_out": ("model.layers.{}.mlp", "output"),
    "mlp_in": ("model.layers.{}.mlp", "input"),
    "norm": ("model.layers.{}.post_attention_layernorm", "input"),
    "final": ("model.norm", "output"),
}
GEMMA = LLAMA | {
    "attn_out": ("model.layers.{}.post_attention_layernorm", "output"),
    "mlp_out": ("model.layers.{}.post_feedforward_layernorm", "output"),
    "norm": ("model.layers.{}.pre_feedforward_layernorm", "input"),
}
GEMMA3 = {kind: (path.replace("model.", "model.language_model."), end) for kind, (path, end) in GEMMA.items()}
NEOX = {
    "resid_post": ("gpt_neox.layers.{}", "output"),
    "attn_z": ("gpt_neox.layers.{}.attention.dense", "input"),
    "attn_out": ("gpt_neox.layers.{}.attention", "output"),
    "mlp_out": ("gpt_neox.layers.{}.mlp", "output"),
    "mlp_in": ("gpt_neox.layers.{}.mlp", "input"),
    "norm": ("gpt_neox.layers.{}.post_attention_layernorm", "input"),
    "final": ("gpt_neox.final_layer_norm", "output"),
}
GPT2 = {
    "resid_post": ("transformer.h.{}", "output"),
    "attn_z": ("transformer.h.{}.attn.c_proj", "input"),
    "attn_out": ("transformer.h.{}.attn", "output"),
    "mlp_out": ("transformer.h.{}.mlp", "output"),
    "mlp_in": ("transformer.h.{}.mlp", "input"),
    "norm": ("transformer.h.{}.ln_2", "input"),
    "final": ("transformer.ln_f", "output"),
}
TRUTH = {"gpt2": GPT2, "gpt_neox": NEOX, "gemma2": GEMMA, "gemma3_text": GEMMA, "gemma3": GEMMA3}


def module_and_end(lm: LanguageModel, name: str, layer: int = 0) -> tuple[Module, str]:
    path, end = TRUTH.get(lm.model.config.model_type, LLAMA)[name]
    return lm.model.get_submodule(path.format(layer)), end


@contextmanager
def plain_hook(module: Module, end: str) -> Iterator[list[Tensor]]:
    """Copies of the input or output of a module, one for each call."""
    seen: list[Tensor] = []

    def note(_: Module, inputs: Any, output: Any) -> None:
        value = inputs if end == "input" else output
        seen.append((value[0] if isinstance(value, tuple) else value).clone())

    handle = module.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def plain_logits(lm: LanguageModel, tokens: Tokens) -> Tensor:
    return lm.model(input_ids=tokens[0], attention_mask=tokens[1], use_cache=False).logits


@torch.no_grad()
def truth(lm: LanguageModel, tokens: Tokens, name: str, layer: int) -> Tensor:
    with plain_hook(*module_and_end(lm, name, layer)) as seen:
        plain_logits(lm, tokens)
    (value,) = seen
    return value


def gain_and_bias(norm: Any) -> tuple[Tensor, Tensor | None]:
    gain = norm.weight + 1.0 if "Gemma" in type(norm).__name__ else norm.weight
    return gain, getattr(norm, "bias", None)


def sites_of(lm: LanguageModel, kind: str) -> list[Site]:
    return [Site(layer, kind) for layer in range(lm.n_layers)]


def noise_like(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.dtype)


def test_table_holds_every_kind():
    assert tuple(KINDS) == SITE_KINDS


@pytest.mark.parametrize("kind", [kind for kind in SITE_KINDS if kind != "mlp_in_no_gain"])
def test_read_is_the_models_own_tensor(lm: LanguageModel, tokens: Tokens, kind: str):
    activations = lm.run(*tokens, read=sites_of(lm, kind)).activations
    for site, value in activations.items():
        assert torch.equal(value, truth(lm, tokens, kind, site.layer))
        assert value.shape == (*tokens[0].shape, lm.width(site))


def test_mlp_in_no_gain_is_the_normalised_input(lm: LanguageModel, tokens: Tokens):
    for site, value in lm.run(*tokens, read=sites_of(lm, "mlp_in_no_gain")).activations.items():
        x = truth(lm, tokens, "norm", site.layer)
        norm: Any = module_and_end(lm, "norm", site.layer)[0]
        assert value.shape == (*tokens[0].shape, lm.d_model)
        if isinstance(norm, torch.nn.LayerNorm):
            x = x.double()
            expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
            # float32 sums of up to 96 numbers against float64: 96 roundings of 6e-8, times |n| of at most sqrt(96)
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=6e-5)
        else:  # the operations of the model's RMSNorm in its order, so every bit must agree
            eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
            assert torch.equal(value, x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def test_mlp_in_no_gain_times_gain_is_mlp_in(lm: LanguageModel, tokens: Tokens):
    for layer in range(lm.n_layers):
        bare, full = Site(layer, "mlp_in_no_gain"), Site(layer, "mlp_in")
        activations = lm.run(*tokens, read=[bare, full]).activations
        gain, bias = gain_and_bias(module_and_end(lm, "norm", layer)[0])
        if bias is None:
            assert torch.equal(activations[bare] * gain, activations[full])
            assert not torch.equal(activations[bare], activations[full])
        else:  # a fused kernel may skip the rounding of the product: one unit in the last place of each term
            scaled = activations[bare] * gain
            unit = torch.finfo(torch.float32).eps * (scaled.abs() + bias.abs())
            assert ((scaled + bias - activations[full]).abs() <= unit).all()


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_writing_back_leaves_the_logits_bit_identical(lm: LanguageModel, tokens: Tokens, kind: str):
    expected = plain_logits(lm, tokens)
    splice = {site: lambda x: x.clone() for site in sites_of(lm, kind)}
    logits = lm.run(*tokens, splice=splice, logits=True).logits
    assert logits is not None
    assert torch.equal(logits, expected)


def test_reading_and_writing_back_everything_at_once(lm: LanguageModel, tokens: Tokens):
    every = [site for kind in SITE_KINDS for site in sites_of(lm, kind)]
    reading = lm.run(*tokens, read=every, splice={site: lambda x: x for site in every}, logits=True)
    assert reading.logits is not None
    assert torch.equal(reading.logits, plain_logits(lm, tokens))
    assert list(reading.activations) == every


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_a_change_changes_the_logits(lm: LanguageModel, tokens: Tokens, kind: str):
    expected = plain_logits(lm, tokens)
    for site in sites_of(lm, kind):
        logits = lm.run(*tokens, splice={site: lambda x: x + noise_like(x)}, logits=True).logits
        assert logits is not None
        assert (logits != expected).any(-1)[tokens[1]].all()


def test_zero_residual_after_the_last_block_leaves_norm_and_head(lm: LanguageModel, tokens: Tokens):
    last = Site(lm.n_layers - 1, "resid_post")
    logits = lm.run(*tokens, splice={last: torch.zeros_like}, logits=True).logits
    head: Any = lm.model.get_output_embeddings()
    with torch.no_grad():
        expected = head(module_and_end(lm, "final")[0](torch.zeros(*tokens[0].shape, lm.d_model)))
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    expected = expected if cap is None else torch.tanh(expected / cap) * cap
    assert logits is not None
    assert torch.equal(logits, expected)


def test_early_stop_runs_no_later_block(lm: LanguageModel, tokens: Tokens):
    every = [Site(0, kind) for kind in SITE_KINDS]
    full = lm.run(*tokens, read=every, logits=True).activations
    blocks = [module_and_end(lm, "resid_post", layer)[0] for layer in range(lm.n_layers)]
    calls: list[int] = []
    head: Any = lm.model.get_output_embeddings()
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: calls.append(i)) for i, block in enumerate([*blocks, head])
    ]
    try:
        short = lm.run(*tokens, read=every).activations
        assert calls == [0]
        calls.clear()
        assert lm.run(*tokens, read=[Site(1, "attn_z"), Site(0, "mlp_out")]).logits is None
        assert calls == [0, 1]
        calls.clear()
        lm.run(*tokens, read=[Site(0, "resid_post")], logits=True)
        assert calls == list(range(lm.n_layers + 1))
        calls.clear()
        assert lm.run(*tokens).activations == {}
        assert calls == []
    finally:
        for handle in handles:
            handle.remove()
    for site in every:
        assert torch.equal(short[site], full[site])


def test_pass_after_an_early_stop_is_as_before(lm: LanguageModel, tokens: Tokens):
    expected = plain_logits(lm, tokens)
    lm.run(*tokens, read=[Site(0, "attn_z")])
    assert torch.equal(plain_logits(lm, tokens), expected)


def test_unchanged_rows_of_mlp_in_no_gain_stay_bit_identical(lm: LanguageModel, tokens: Tokens):
    bare, full = Site(1, "mlp_in_no_gain"), Site(1, "mlp_in")
    before = lm.run(*tokens, read=[bare, full]).activations
    noise = noise_like(before[bare][0])

    def change_first(x: Tensor) -> Tensor:
        x[0] += noise
        return x

    after = lm.run(*tokens, read=[bare, full], splice={bare: change_first}).activations
    assert torch.equal(after[bare], before[bare])
    assert torch.equal(after[full][1:], before[full][1:])
    gain, bias = gain_and_bias(module_and_end(lm, "norm", 1)[0])
    expected = (before[bare][0] + noise) * gain
    assert torch.equal(after[full][0], expected if bias is None else expected + bias)


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_read_and_splice_at_one_site_reads_what_was_before(lm: LanguageModel, tokens: Tokens, kind: str):
    site, later = Site(0, kind), Site(1, "resid_post")
    before = lm.run(*tokens, read=[site, later]).activations
    after = lm.run(*tokens, read=[site, later], splice={site: lambda x: x.mul_(2.0)}).activations
    assert torch.equal(after[site], before[site])
    assert not torch.equal(after[later], before[later])


def test_half_precision_writes_back_bit_identically(tokens: Tokens, make_lm: Any):
    for model_type in ("gpt2", "gpt_neox", "llama", "qwen3", "gemma2", "gemma3_text"):
        lm: LanguageModel = make_lm(model_type)
        lm.model.bfloat16()
        expected = plain_logits(lm, tokens)
        every = [site for kind in SITE_KINDS for site in sites_of(lm, kind)]
        reading = lm.run(*tokens, read=every, splice={site: lambda x: x.float() for site in every}, logits=True)
        assert reading.logits is not None
        assert torch.equal(reading.logits, expected), model_type
        assert {value.dtype for value in reading.activations.values()} == {torch.bfloat16}
