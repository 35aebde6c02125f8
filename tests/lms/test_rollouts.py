"""Rollouts against passes over the whole sequence without a cache, and sampling in float64."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.lms.rollouts import Rollout, roll_out
from panscope.types import NonFiniteError

RESPONSE = 9
TOLERANCE = 2e-4
"""Tolerance in nats of sums over a response: float32 logits of cached passes against those of full passes."""


def _prompts(lm: LanguageModel, lengths: tuple[int, ...]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(5)
    low, high = 3, min(40, lm.vocabulary)
    return [[1, *torch.randint(low, high, (n - 1,), generator=draw).tolist()] for n in lengths]


def _draws(n: int, length: int = RESPONSE) -> Tensor:
    return torch.rand(n, length, dtype=torch.float64, generator=torch.Generator().manual_seed(6))


def _plainly(lm: LanguageModel, prompt: list[int], draws: Tensor, temperature: float) -> Rollout:
    """One token after the other, each from a full pass over all tokens so far."""
    tokens, surprise, entropy, has_ended, drawn = list(prompt), 0.0, 0.0, False, 0
    for u in draws.tolist()[: lm.context - len(prompt)]:
        ids = torch.tensor([tokens])
        logits = lm.run(ids, torch.ones_like(ids, dtype=torch.bool), logits=True).logits
        assert logits is not None
        scaled = logits[0, -1].double().numpy() / temperature
        p = np.exp(scaled - scaled.max())
        p /= p.sum()
        token = int(np.searchsorted(np.cumsum(p), u * np.cumsum(p)[-1], side="right"))
        drawn += 1
        surprise -= float(np.log(p[token]))
        entropy -= float((p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum())
        has_ended = token in lm.closing_ids
        if has_ended:
            break
        tokens.append(token)
    return Rollout(tokens[len(prompt) :], has_ended, drawn, surprise, entropy)


def _assert_same(rollout: Rollout, plain: Rollout) -> None:
    assert (rollout.tokens, rollout.has_ended, rollout.drawn) == (plain.tokens, plain.has_ended, plain.drawn)
    assert rollout.surprise == pytest.approx(plain.surprise, abs=TOLERANCE)
    assert rollout.entropy == pytest.approx(plain.entropy, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_family_samples_from_its_own_distribution(lm: LanguageModel, temperature: float) -> None:
    """Prompts of different lengths in one batch, one so long that its response ends at the context."""
    lengths = (4, 1, min(lm.context - 3, 60), 7)
    prompts, draws = _prompts(lm, lengths), _draws(len(lengths))
    made = roll_out(lm, prompts, draws, temperature=temperature)
    for rollout, prompt, numbers in zip(made, prompts, draws, strict=True):
        _assert_same(rollout, _plainly(lm, prompt, numbers, temperature))


def test_a_response_ends_at_the_context_at_the_limit_or_by_itself(make_lm: Callable[[str], LanguageModel]) -> None:
    lm = make_lm("llama")
    prompts, draws = _prompts(lm, (30, *[5] * 40)), _draws(41, 20)
    made = roll_out(lm, prompts, draws)
    assert made[0].drawn <= 2
    assert {rollout.has_ended for rollout in made} == {True, False}
    for rollout in made[1:]:
        assert rollout.drawn == (len(rollout.tokens) + 1 if rollout.has_ended else 20)
        assert not lm.closing_ids & set(rollout.tokens)
    assert roll_out(lm, _prompts(lm, (31,)), _draws(1, 20))[0].drawn == 1


def test_what_stands_beside_it_changes_no_response(make_lm: Callable[[str], LanguageModel]) -> None:
    lm = make_lm("gemma2")
    prompts, draws = _prompts(lm, (3, 8, 1, 8, 5)), _draws(5)
    together = roll_out(lm, prompts, draws)
    for i, rollout in enumerate(together):
        _assert_same(roll_out(lm, prompts[i : i + 1], draws[i : i + 1])[0], rollout)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_even_draws_give_every_token_its_share(make_lm: Callable[[str], LanguageModel], temperature: float) -> None:
    lm, n = make_lm("gpt2"), 4000
    prompt = _prompts(lm, (6,))[0]
    draws = (torch.arange(n, dtype=torch.float64)[:, None] + 0.5) / n
    made = roll_out(lm, [prompt] * n, draws, temperature=temperature)
    ids = torch.tensor([prompt])
    logits = lm.run(ids, torch.ones_like(ids, dtype=torch.bool), logits=True).logits
    assert logits is not None
    p = torch.softmax(logits[0, -1].double() / temperature, dim=0)
    counts = torch.bincount(torch.tensor([r.tokens[0] for r in made if r.tokens]), minlength=len(p))
    closing = sorted(lm.closing_ids)
    assert sum(r.has_ended for r in made) / n == pytest.approx(float(p[closing].sum()), abs=len(closing) / n + 1e-6)
    counts[closing] = (p[closing] * n).round().long()
    assert (counts / n - p).abs().max() < 1 / n + 1e-6


def test_the_ends_of_the_range_draw_a_token_that_can_be(make_lm: Callable[[str], LanguageModel]) -> None:
    lm = make_lm("llama")
    for u in (0.0, 1 - 2**-53):
        rollout = roll_out(lm, _prompts(lm, (3,)), torch.tensor([[u]], dtype=torch.float64))[0]
        assert 0 < rollout.surprise < 20


def test_a_model_that_gives_nan_is_refused(make_lm: Callable[[str], LanguageModel]) -> None:
    lm = make_lm("llama")
    lm.model.get_submodule("model.norm").weight.data[0] = torch.nan  # pyright: ignore
    with pytest.raises(NonFiniteError, match="probabilities are NaN or infinite"):
        roll_out(lm, _prompts(lm, (3, 4)), _draws(2))


def test_the_models_own_end_of_turn_ends_a_response(make_lm: Callable[[str], LanguageModel]) -> None:
    lm = make_lm("llama")
    lm.model.generation_config.eos_token_id = [2, 17]  # pyright: ignore[reportOptionalMemberAccess]
    assert lm.closing_ids == {1, 2, 17}


@pytest.mark.parametrize("name", ["stories260K-instruct-local", "TinyStories-656K", "tinygpt-shakespeare"])
def test_a_response_is_read_with_the_space_it_begins_with(shared: Path, name: str) -> None:
    """Decoded alone, its first token would lose its space, and prompt + response would not be the text."""
    tokenizer = load(LanguageModelConfig(path=str(shared / "models" / name), device="cpu")).tokenizer
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    ending = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    before, after = "User: Tell me a story.\nBot:", " Once upon a time, there was a cat.\nThe end."
    whole = tokenizer.encode([before + after])[0]
    start = tokenizer.encode([before])[0]
    if whole[: len(start)] == start:
        assert tokenizer.decode_after(opening + start, whole[len(start) :] + ending) == after
    assert tokenizer.decode_after(opening + start, ending) == ""
    for cut in range(1, len(whole)):
        begun = tokenizer.decode_after([], opening + whole[:cut])
        assert begun + tokenizer.decode_after(opening + whole[:cut], whole[cut:] + ending) == before + after
