"""Chats tokenised by real tokenizers: every token's role is exact, and the tokens are those of the model's template."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope.activations.live import LiveActivations
from panscope.data.documents import DataConfig, open_documents
from panscope.data.tokens import TokenStream
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.types import Site, TokenBatch

USER, MODEL = "User: ", "\nBot:"
INSTRUCT = "stories260K-instruct-local"


@pytest.fixture(params=[INSTRUCT, "TinyStories-656K", "tinygpt-shakespeare"])
def lm(request: pytest.FixtureRequest, shared: Path) -> LanguageModel:
    return load(LanguageModelConfig(path=str(shared / "models" / request.param), device="cpu"))


@pytest.fixture
def stories(shared: Path) -> list[str]:
    """Short excerpts of held-out stories, as long as a context in characters allows."""
    lines = (shared / "text" / "tinystories.jsonl").read_text(encoding="utf-8").splitlines()[900:930]
    return [json.loads(line)["text"][:60].strip() for line in lines]


def _batches(lm: LanguageModel, path: Path, content: str, **options: Any) -> list[TokenBatch]:
    chat = {"user": USER, "model": MODEL, "content": content, "response": options.pop("response", None)}
    fields = {"text": (str(path),), "chat": chat, "context": lm.context, "held_out": 0.0} | options
    config = DataConfig.read(fields, "data")
    return list(TokenStream(open_documents(config), lm.tokenizer, config, part="all", seed=0, epochs=1))


def _rows(batches: list[TokenBatch]) -> dict[int, tuple[list[int], list[bool]]]:
    found = {}
    for batch in batches:
        for i, mask in enumerate(batch.attention_mask):
            found[int(batch.document_ids[i][0])] = batch.token_ids[i][mask].tolist(), batch.content[i][mask].tolist()
    return found


def test_tokens_end_where_their_text_does(lm: LanguageModel, stories: list[str]) -> None:
    texts = [story.encode("ascii", "ignore").decode() for story in stories]
    for text, (tokens, ends) in zip(texts, lm.tokenizer.encode_with_ends(texts), strict=True):
        assert tokens == lm.tokenizer.encode([text])[0]
        for i, (end, after) in enumerate(itertools.pairwise([*ends, len(text) + 1]), 1):
            if i > 1 and end < after:  # several tokens may form one character, and the first may be an added space
                assert lm.tokenizer.decode_after([], tokens[:i]).strip() == text[:end].strip()
        assert ends[-1] == len(text)
    odd = "a 😀é b"
    tokens, ends = lm.tokenizer.encode_with_ends([odd])[0]
    assert ends == sorted(ends)
    assert ends[-1] == len(odd)


def test_the_roles_of_chats_are_exact(lm: LanguageModel, stories: list[str], tmp_path: Path) -> None:
    """Every role starts where its text does, by the decoded tokens, and the tokens are those that the model reads."""
    path = tmp_path / "chats.jsonl"
    pairs = [(a[:30].strip(), " " + b[:30].strip()) for a, b in itertools.pairwise(stories)]
    assert all(prompt.isascii() and response.isascii() for prompt, response in pairs)
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    opening = [] if lm.tokenizer.bos_id is None else [lm.tokenizer.bos_id]
    options = {"column": "prompt", "response": "response"}
    judged = {c: _rows(_batches(lm, path, c, **options)) for c in ("all", "prompt", "response")}
    for number, (prompt, response) in enumerate(pairs):
        tokens, every = judged["all"][number]
        whole = opening + lm.tokenizer.encode([USER + prompt + MODEL + response])[0]
        assert tokens == whole
        flags = {content: judged[content][number][1] for content in judged}
        assert all(tokens == judged[content][number][0] for content in judged)
        first = every.index(True)
        assert every == [False] * first + [True] * (len(tokens) - first)
        answer = flags["response"].index(True)
        assert flags["response"] == [False] * answer + [True] * (len(tokens) - answer)
        assert not any(a and b for a, b in zip(flags["prompt"], flags["response"], strict=True))
        last = len(tokens) - flags["prompt"][::-1].index(True)
        seams = itertools.accumulate(map(len, (USER, prompt, MODEL)))
        for begin, seam in zip((first, last, answer), seams, strict=True):
            before, one_more = (len(lm.tokenizer.decode_after([], tokens[:n])) for n in (begin, begin + 1))
            assert before <= seam < one_more, "a role begins with the first token that ends after its seam"


def test_training_on_a_fine_tuned_model_takes_every_position_but_the_prefix(shared: Path, stories: list[str]) -> None:
    """Gemma Scope, 4.5: the user prefix is the same in every document and is read by the model, but yields no row."""
    lm = load(LanguageModelConfig(path=str(shared / "models" / INSTRUCT), device="cpu"))
    path = shared / "text" / "tinystories.jsonl"
    lines = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    batches = _batches(lm, path, "all")[:3]
    assert sum(len(batch.token_ids) for batch in batches) == 96
    prefix = [1, *lm.tokenizer.encode(["User:"])[0]]
    ending = lm.tokenizer.encode(["x" + MODEL])[0][-4:]
    space = lm.tokenizer.encode([""" b"""])[0][0]
    for number, (tokens, content) in _rows(batches).items():
        assert tokens[: len(prefix)] == prefix
        unread = len(prefix) + (tokens[len(prefix)] == space)  # the prefix's space, if it is a token of its own
        assert content == [False] * unread + [True] * (len(tokens) - unread)
        assert tokens[-4:] == ending
        whole = [1, *lm.tokenizer.encode([USER + lines[number] + MODEL])[0]]
        assert tokens == (whole if len(whole) <= lm.context else whole[: lm.context - 4] + ending)
    site = Site(3, "resid_post")
    rows = list(LiveActivations(lm, _Given(batches), [site]))
    positions = torch.cat([batch.positions for batch in rows])
    assert len(positions) == sum(int(batch.content.sum()) for batch in batches)
    assert int(positions.min()) == len(prefix)
    reading = lm.run(batches[0].token_ids, batches[0].attention_mask, read=[site]).activations[site]
    assert torch.equal(rows[0].rows[site], reading[batches[0].content])


class _Given:
    """Batches as a source of tokens."""

    def __init__(self, batches: list[TokenBatch]) -> None:
        self._batches = iter(batches)

    def __iter__(self) -> "_Given":
        return self

    def __next__(self) -> TokenBatch:
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise AssertionError
