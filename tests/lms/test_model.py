"""Properties and errors of LanguageModel, and that it leaves no hooks behind."""

from collections.abc import Callable

import pytest
import torch
import transformers
from torch import Tensor, nn

from panscope.data.packing import DocumentPacker
from panscope.lms.families import FAMILIES, family_of
from panscope.lms.hooks import PassDone, Tap, run_with
from panscope.lms.model import LanguageModel
from panscope.types import Site, UserError

Tokens = tuple[Tensor, Tensor]
MakeLm = Callable[[str], LanguageModel]


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture
def llama(make_lm: MakeLm) -> LanguageModel:
    return make_lm("llama")


@pytest.mark.parametrize(("model_type", "z"), [("gpt2", 24), ("gpt_neox", 24), ("llama", 24), ("qwen2", 24)])
def test_heads_as_wide_as_the_residual(make_lm: MakeLm, model_type: str, z: int):
    lm = make_lm(model_type)
    assert (lm.n_layers, lm.d_model, lm.context) == (3, 24, 32)
    assert lm.width(Site(2, "attn_z")) == z


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gemma3_text", "gemma3"])
def test_heads_wider_than_the_residual(make_lm: MakeLm, model_type: str):
    lm = make_lm(model_type)
    assert lm.width(Site(0, "attn_z")) == 4 * 8
    assert {lm.width(Site(0, kind)) for kind in ("resid_post", "attn_out", "mlp_out", "mlp_in", "mlp_in_no_gain")} == {
        24
    }
    assert lm.family is family_of(model_type)


def test_model_is_frozen_and_in_eval_mode(llama: LanguageModel, tokens: Tokens):
    assert not llama.model.training
    assert not any(parameter.requires_grad for parameter in llama.model.parameters())
    assert (llama.device, llama.dtype) == (torch.device("cpu"), torch.float32)
    value = llama.run(*tokens, read=[Site(0, "mlp_in")]).activations[Site(0, "mlp_in")]
    weight = torch.ones(24, requires_grad=True)
    (value @ weight).sum().backward()  # activations can be used in a graph afterwards
    assert weight.grad is not None


def test_mask_reaches_the_model(llama: LanguageModel, tokens: Tokens):
    site = Site(0, "resid_post")
    mask = torch.ones_like(tokens[1])
    mask[0, 0] = False
    seen = llama.run(tokens[0], torch.ones_like(mask), read=[site]).activations[site]
    masked = llama.run(tokens[0], mask, read=[site]).activations[site]
    assert not torch.equal(seen[0, 1:], masked[0, 1:])


def test_layer_out_of_range_names_the_range(llama: LanguageModel, tokens: Tokens):
    for ask in (
        lambda: llama.width(Site(3, "mlp_out")),
        lambda: llama.run(*tokens, read=[Site(3, "mlp_out")]),
        lambda: llama.run(*tokens, splice={Site(3, "mlp_out"): lambda x: x}),
    ):
        with pytest.raises(UserError, match=r"layer 3 of site 'L03.mlp_out' .* from 0 to 2"):
            ask()


def test_sequence_longer_than_the_context(llama: LanguageModel):
    token_ids = torch.full((1, 33), 5)
    with pytest.raises(UserError, match="33 tokens a sequence, but the model's context is 32"):
        llama.run(token_ids, token_ids > 0, logits=True)


def test_splice_of_another_shape(llama: LanguageModel, tokens: Tokens):
    with pytest.raises(UserError, match=r"splice at 'L00.mlp_out' returned the shape \(3, 9, 23\).*\(3, 9, 24\)"):
        llama.run(*tokens, splice={Site(0, "mlp_out"): lambda x: x[..., 1:]}, logits=True)


def test_unknown_family_names_the_supported_ones():
    with pytest.raises(UserError) as error:
        family_of("opt")
    assert "'opt'" in str(error.value)
    for family in FAMILIES:
        assert all(name in str(error.value) for name in family.model_types)


def test_unknown_model_is_refused():
    config = transformers.OPTConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, ffn_dim=8, num_attention_heads=1, word_embed_proj_dim=8
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="model type 'opt' is not supported"):
        LanguageModel(model, transformers.PreTrainedTokenizerFast.__new__(transformers.PreTrainedTokenizerFast))


def test_no_hook_is_left(llama: LanguageModel, tokens: Tokens):
    before = hooks_on(llama.model)
    site = Site(1, "mlp_in_no_gain")

    def fail(x: Tensor) -> Tensor:
        assert hooks_on(llama.model) > before
        raise ZeroDivisionError

    llama.run(*tokens, read=[site, Site(0, "attn_z")])
    assert hooks_on(llama.model) == before
    llama.run(*tokens, read=[site], splice={site: lambda x: x}, logits=True)
    assert hooks_on(llama.model) == before
    with pytest.raises(ZeroDivisionError):
        llama.run(*tokens, splice={site: fail, Site(0, "attn_z"): lambda x: x}, logits=True)
    assert hooks_on(llama.model) == before
    with pytest.raises(IndexError):
        llama.run(tokens[0] + 1000, tokens[1], read=[site])
    assert hooks_on(llama.model) == before


class Pair(nn.Module):
    """A block as in some transformers releases: it returns a tuple that starts with the tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x + 1, "rest"


def test_taps_see_and_replace_the_first_of_a_tuple():
    module, x = Pair(), torch.zeros(2)
    seen: list[Tensor] = []

    def double(given: Tensor, value: Tensor) -> Tensor:
        seen.extend([given, value])
        return value * 2

    assert run_with([], lambda: module(x)) is not None
    result = run_with([Tap(module, "output", double)], lambda: module(x))
    assert result is not None
    assert result[0].tolist() == [2, 2]
    assert result[1] == "rest"
    assert [value.tolist() for value in seen] == [[0, 0], [1, 1]]


def test_a_tap_may_end_the_pass():
    def done(given: Tensor, value: Tensor) -> Tensor:
        raise PassDone

    module = Pair()
    assert run_with([Tap(module, "input", done)], lambda: module(torch.zeros(2))) is None
    assert hooks_on(module) == 0


def test_texts_are_tokens_as_training_reads_documents(lm: LanguageModel) -> None:
    """Against the packer that training uses, document by document."""
    texts = ["Once upon a time", "there", "a cat and a dog " * 400]
    packer = DocumentPacker(lm.tokenizer, lm.context)
    expected = packer.pack(list(enumerate(lm.tokenizer.encode(texts))))
    token_ids, mask = lm.tokens(texts)
    assert len(expected) == 3 and token_ids.shape == mask.shape
    for row, seen, sequence in zip(token_ids, mask, expected, strict=True):
        assert torch.equal(row[seen], sequence.token_ids)
        assert not seen[len(sequence.token_ids) :].any()
    alone, all_of_it = lm.tokens(texts[0])
    assert torch.equal(alone[0], expected[0].token_ids) and all_of_it.all()
    with pytest.raises(UserError, match="the text '' has no token"):
        lm.tokens(["a", ""])
