"""Which passes are recorded together: caches, removed tokens, compiled and checkpointed models.

Shape letters: N sequences, T tokens.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CompileConfig, DynamicCache

from panscope.intervene.attach import Attached, attach
from panscope.intervene.edits import Steer
from panscope.lms.hf_versions import cache_in_output
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.types import Site
from tests.support.attached import forward, made, with_cache

SITE = Site(1, "resid_post")
A = torch.tensor([[5, 9, 4, 11, 6, 8, 2, 3, 7]])
B = torch.tensor([[7, 7, 30, 3, 12, 13]])


def alone(llama: LanguageModel, ids: Tensor) -> Tensor:
    """[N, T, F] the codes of one pass over `ids`."""
    with attach(llama, made(llama, SITE, name="c")) as seen:
        forward(llama, (ids, torch.ones_like(ids)))
    return seen.latents["c"].tensor()


def check(seen: Attached, positions: range, expected: Tensor) -> None:
    assert seen.positions == positions
    torch.testing.assert_close(seen.latents["c"].tensor(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_two_caches_are_two_sequences(llama: LanguageModel) -> None:
    one, two, expected = DynamicCache(), DynamicCache(), alone(llama, A)[:, 6:]
    with attach(llama, made(llama, SITE, name="c")) as seen:
        llama.model(input_ids=A[:, :6], **with_cache(llama, one))
        llama.model(input_ids=B, **with_cache(llama, two))
        llama.model(input_ids=A[:, 6:], **with_cache(llama, one))
        check(seen, range(6, 9), expected)
        llama.model(input_ids=A[:, :2], **with_cache(llama, one))
        assert seen.positions == range(6, 11)


@torch.no_grad()
def test_a_cache_that_the_model_made_is_gone_on_with(llama: LanguageModel) -> None:
    with attach(llama, made(llama, SITE, name="c")) as seen:
        cache = cache_in_output(llama.model(input_ids=A[:, :6], use_cache=True))
        llama.model(input_ids=A[:, 6:], **with_cache(llama, cache))
    check(seen, range(9), alone(llama, A))


@torch.no_grad()
def test_a_prompt_read_once_for_several_sequences(llama: LanguageModel) -> None:
    cache = DynamicCache()
    rest = torch.cat([A[:, 6:], A[:, 6:] + 1])
    with attach(llama, made(llama, SITE, name="c")) as seen:
        llama.model(input_ids=A[:, :6], **with_cache(llama, cache))
        cache.batch_repeat_interleave(2)
        llama.model(input_ids=rest, **with_cache(llama, cache))
    whole = torch.cat([A[:, :6].repeat(2, 1), rest], dim=1)
    check(seen, range(6, 9), alone(llama, whole)[:, 6:])


@torch.no_grad()
def test_tokens_taken_back_after_the_last_pass(llama: LanguageModel) -> None:
    cache, expected = DynamicCache(), alone(llama, A)
    with attach(llama, made(llama, SITE, name="c")) as seen:
        llama.model(input_ids=A, **with_cache(llama, cache))
        cache.crop(-2)
        check(seen, range(7), expected[:, :7])
        llama.model(input_ids=A[:, 7:], **with_cache(llama, cache))
        cache.crop(-1)
    check(seen, range(8), expected[:, :8])


@torch.no_grad()
@pytest.mark.parametrize("back", [3, 4, 5])
def test_a_prefix_that_is_used_again(back: int, llama: LanguageModel) -> None:
    """The last records are kept if the cache is truncated to the prefix, or shorter, for the next continuation."""
    cache, expected = DynamicCache(), alone(llama, A)
    llama.model(input_ids=A[:, :6], **with_cache(llama, cache))
    with attach(llama, made(llama, SITE, name="c")) as seen:
        llama.model(input_ids=A[:, 6:], **with_cache(llama, cache))
        cache.crop(-back)
        check(seen, range(6, 9), expected[:, 6:])
        llama.model(input_ids=A[:, 9 - back :], **with_cache(llama, cache))
    check(seen, range(9 - back, 9), expected[:, 9 - back :])


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing")
def test_a_cache_that_layers_leave_empty(llama: LanguageModel) -> None:
    """Like transformers with gradient checkpointing of a model in train mode."""
    model: Any = llama.model
    model.train()
    model.gradient_checkpointing_enable()
    with attach(model, made(llama, SITE, name="c")) as seen, torch.no_grad():
        model(input_ids=A, **with_cache(llama, DynamicCache()))
    assert seen.positions == range(9) and seen.latents["c"].leading == (1, 9)


def test_drafts_that_are_refused_leave_nothing(shared: Any) -> None:
    """Prompt lookup drafts several tokens per pass; only accepted tokens are recorded, and the last is never run."""
    lm = load(LanguageModelConfig(path=str(shared / "models" / "stories260K"), device="cpu"))
    model: Any = lm.model
    coder = made(lm, SITE, name="c")
    for start in range(9, 13):  # 11 ends with a draft of which three tokens are rejected
        prompt = torch.tensor([[1, start, start + 1, start + 2, start, start + 1, start + 2, start]])
        given = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}
        with attach(lm, coder) as seen:
            found = model.generate(prompt, max_new_tokens=12, prompt_lookup_num_tokens=4, **given)
        length = found.shape[1] - 1
        assert seen.positions == range(length)
        with attach(lm, coder) as whole:
            forward(lm, (found[:, :-1], torch.ones_like(found[:, :-1])))
        expected = whole.latents["c"].tensor()
        torch.testing.assert_close(seen.latents["c"].tensor(), expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("way", ["torch.compile", "compiled in place"])
def test_a_compiled_model_is_seen_and_stays_compiled(way: str, llama: LanguageModel) -> None:
    """Compiled code does not call hooks registered later; counts how often previously compiled code runs."""
    model: Any = copy.deepcopy(llama.model)
    runs = 0

    def counting(graph: Any, _inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal runs
            runs += 1
            return graph(*args)

        return run

    torch._dynamo.reset()
    if way == "torch.compile":
        model = torch.compile(model, backend=counting)
    else:
        model.compile(backend=counting)
    with torch.no_grad():
        plain = model(input_ids=A, use_cache=False).logits
        before = runs
        assert before > 0
        coder = made(llama, SITE, name="c")
        with attach(model, coder, edits=[Steer("c", 3, 50.0)]) as seen:
            steered = model(input_ids=A, use_cache=False).logits
        assert runs == before
        with attach(llama, coder, edits=[Steer("c", 3, 50.0)]):
            expected = forward(llama, (A, torch.ones_like(A)))
        assert torch.equal(model(input_ids=A, use_cache=False).logits, plain) and runs > before
    torch.testing.assert_close(steered, expected)
    check(seen, range(9), alone(llama, A))


def test_generate_that_compiles_by_itself(llama: LanguageModel) -> None:
    """As on a GPU, where a static cache causes it."""
    model: Any = llama.model
    compiling: Any = CompileConfig(backend="eager")
    compiling._compile_all_devices = True
    given = {"attention_mask": torch.ones_like(A), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    given |= {"cache_implementation": "static", "min_new_tokens": 6}
    coder = made(llama, SITE, name="c")
    torch._dynamo.reset()
    with attach(llama, coder, edits=[Steer("c", 3, 60.0)]) as plain:
        expected = model.generate(A, **given)
    model.generate(A, compile_config=compiling, **given)
    with attach(llama, coder, edits=[Steer("c", 3, 60.0)]) as seen:
        found = model.generate(A, compile_config=compiling, **given)
    assert torch.equal(found, expected)
    check(seen, range(14), plain.latents["c"].tensor())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_disable` is deprecated")
@pytest.mark.parametrize("kind", ["mlp_in", "mlp_in_no_gain", "attn_z", "attn_out", "mlp_out", "resid_post"])
def test_checkpointed_blocks_are_recorded_once(kind: str, llama: LanguageModel) -> None:
    model: Any = llama.model
    coder = made(llama, Site(1, kind), name="c")  # pyright: ignore[reportArgumentType]
    model.requires_grad_(True).train()
    model.gradient_checkpointing_enable()
    found = []
    for _ in range(2):
        with attach(model, coder, edits=[Steer("c", 3, 2.0)]) as seen:
            model(input_ids=A, use_cache=False).logits.square().sum().backward()
            assert seen.positions == range(9)
            assert seen.latents["c"].leading == (1, 9)
            assert seen.activations[Site(1, kind)].shape[:2] == (1, 9)  # pyright: ignore[reportArgumentType]
        found.append(model.get_input_embeddings().weight.grad.clone())
        model.zero_grad()
        model.gradient_checkpointing_disable()
    torch.testing.assert_close(found[0], found[1])
