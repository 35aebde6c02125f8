"""Rollouts of a trained chat model: their tokens are drawn as the model says, and their file is a text of chats."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope.data.documents import DataConfig, open_documents
from panscope.data.order import generator
from panscope.data.tokens import TokenStream
from panscope.events import Reporter
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.lms.rollouts import roll_out
from panscope.runs.rollouts import RolloutConfig, make_rollouts

CHAT = {"user": "User: ", "model": "\nBot:"}
WORDS = ("cat", "dog", "sun", "tree", "ball", "happy", "park", "cake")


@pytest.fixture(scope="module")
def lm(shared: Path) -> LanguageModel:
    path = shared / "models" / "stories260K-instruct-local"
    return load(LanguageModelConfig(path=str(path), device="cpu"))


def _prompts(n: int) -> list[str]:
    chosen = [generator(1, i).choice(WORDS, 3, replace=False) for i in range(n)]
    return [f"Tell me a story with the words {', '.join(words)}." for words in chosen]


def test_tokens_surprise_the_model_as_much_as_it_expects(lm: LanguageModel) -> None:
    """At temperature 1 the mean of -log p is that of the entropy: their differences sum to 0 but for chance."""
    texts = [CHAT["user"] + prompt + CHAT["model"] for prompt in _prompts(96)]
    prompts = [[1, *tokens] for tokens in lm.tokenizer.encode(texts)]
    draws = torch.stack([torch.from_numpy(generator(2, i).random(128)) for i in range(96)])
    made = roll_out(lm, prompts, draws)
    gaps = [rollout.surprise - rollout.entropy for rollout in made]
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    assert abs(statistics.mean(gaps)) < 3 * error
    tokens = sum(rollout.drawn for rollout in made)
    assert tokens > 10_000
    assert error * len(gaps) / tokens < 0.02, "nats a token: so tight that top-k or top-p would show"
    cold = roll_out(lm, prompts, draws, temperature=0.8)
    cold_gaps = [_gap(lm, prompt, rollout.tokens) for prompt, rollout in zip(prompts, cold, strict=True)]
    assert statistics.mean(cold_gaps) < -10 * error, "drawn at a lower temperature, tokens surprise less than expected"


def _gap(lm: LanguageModel, prompt: list[int], tokens: list[int]) -> float:
    """-log p less the entropy, summed over `tokens`, in one whole pass."""
    ids = torch.tensor([prompt + tokens])
    logits = lm.run(ids, torch.ones_like(ids, dtype=torch.bool), logits=True).logits
    assert logits is not None
    log_p = logits[0].double().log_softmax(dim=1)[len(prompt) - 1 : -1]
    surprise = -log_p[torch.arange(len(tokens)), torch.tensor(tokens)].sum()
    return float(surprise + (log_p.exp() * log_p).sum())


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_rollouts_is_a_text_of_chats(lm: LanguageModel, tmp_path: Path) -> None:
    """Read back, the model loses on the responses what it lost as it made them."""
    out = tmp_path / "rollouts.jsonl"
    made = make_rollouts(
        lm, _prompts(40), RolloutConfig(count=40, tokens=64, user=CHAT["user"], model=CHAT["model"]), out, Reporter()
    )
    assert (made.count, made.prompts, made.too_long, made.tokens) == (40, 40, 0, made.tokens)
    chat = CHAT | {"response": "response", "content": "response"}
    config = DataConfig.read({"text": [str(out)], "column": "prompt", "context": 512, "chat": chat}, "data")
    total, count = 0.0, 0
    for batch in TokenStream(open_documents(config), lm.tokenizer, config, part="all", seed=0, epochs=1):
        logits = lm.run(batch.token_ids, batch.attention_mask, logits=True).logits
        assert logits is not None
        log_p = logits[:, :-1].double().log_softmax(dim=2).gather(2, batch.token_ids[:, 1:, None]).squeeze(2)
        total -= float(log_p[batch.content[:, 1:]].sum())
        count += int(batch.content.sum())
    assert count == pytest.approx(made.tokens, rel=0.01)
    assert total / count == pytest.approx(made.surprise, abs=0.03)


def test_more_rollouts_begin_with_the_same_ones_and_batches_change_none(lm: LanguageModel, tmp_path: Path) -> None:
    files = []
    for i, (count, batch) in enumerate(((6, 32), (11, 4), (11, 1))):
        make_rollouts(
            lm, _prompts(4), RolloutConfig(count=count, tokens=12, batch=batch), tmp_path / f"{i}.jsonl", Reporter()
        )
        files.append(_lines(tmp_path / f"{i}.jsonl"))
    assert [len(lines) for lines in files] == [6, 11, 11]
    assert files[0] == files[1][:6]
    assert files[1] == files[2]
    prompts = [line["prompt"] for line in files[1]]
    assert sorted(prompts[:4]) == sorted(prompts[4:8]) == sorted(_prompts(4)), "every prompt once a round"
    assert len({line["response"] for line in files[1]}) == 11


def test_another_seed_takes_other_prompts_and_tokens(lm: LanguageModel, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_rollouts(
            lm, _prompts(50), RolloutConfig(count=5, tokens=8, seed=seed), tmp_path / f"{seed}.jsonl", Reporter()
        )
    first, second = (_lines(tmp_path / f"{seed}.jsonl") for seed in (0, 1))
    assert [line["prompt"] for line in first] != [line["prompt"] for line in second]
    assert [line["prompt"] for line in first] != _prompts(50)[:5], "a sample, not the first ones"
    assert [line["response"] for line in first] != [line["response"] for line in second]
