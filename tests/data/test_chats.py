"""Chats, compared with a simple word-by-word implementation: tokens, their order, and which are content."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panscope.data import tokens as tokens_module
from panscope.data.documents import DataConfig, LocalDocuments, open_documents
from panscope.data.files import open_file
from panscope.data.hub import HubDocuments, open_hub
from panscope.data.source import is_in_part
from panscope.data.tokens import TokenStream
from panscope.types import TokenBatch, UserError
from tests.support.word_text import WordTokenizer, config

USER, MODEL = "9001 9002 ", " 9003 "
MARKS = ([9001, 9002], [9003])
Chat = tuple[str, str]
Write = Callable[[list[Chat]], LocalDocuments]
same_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture
def write_chats(tmp_path: Path) -> Write:
    """Write (prompt, response) pairs to a .jsonl file and open both fields."""

    def write(chats: list[Chat]) -> LocalDocuments:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in chats))
        return LocalDocuments([open_file(path, "prompt")], [open_file(path, "response")])

    return write


def _stream(documents: LocalDocuments, content: str = "all", **options: Any) -> TokenStream:
    given: dict[str, Any] = {"part": "all", "seed": 0, "epochs": 1}
    given |= {name: options.pop(name) for name in ("part", "seed", "epochs") if name in options}
    tokenizer = options.pop("tokenizer", None) or WordTokenizer()
    chat = {"user": USER, "model": MODEL, "response": "response", "content": content} | options.pop("chat", {})
    return TokenStream(documents, tokenizer, config(chat=chat, **options), **given)


def _sequences(batches: list[TokenBatch]) -> list[tuple[int, list[int], list[bool]]]:
    """Document, tokens and which of them are content, of every sequence."""
    found = []
    for batch in batches:
        for i, mask in enumerate(batch.attention_mask):
            assert not batch.content[i][~mask].any()
            number = int(batch.document_ids[i][0])
            found.append((number, batch.token_ids[i][mask].tolist(), batch.content[i][mask].tolist()))
    return found


def _plain_chat(prompt: list[int], response: list[int], bos: list[int], context: int, content: str) -> tuple:
    """Tokens and content of one chat, from the roles of its words."""
    room = context - len(bos) - 3
    said = prompt[:room]
    answered = response[: room - len(said)]
    roles = ["bos"] * len(bos) + ["user"] * 2 + ["prompt"] * len(said) + ["model"] + ["response"] * len(answered)
    words = [*MARKS[0], *said, *MARKS[1], *answered]
    wanted = {"all": {"prompt", "model", "response"}, "prompt": {"prompt"}, "response": {"response"}}[content]
    return bos + [word + 10 for word in words], [role in wanted for role in roles]


def _numbered(lengths: list[tuple[int, int]]) -> tuple[list[Chat], list[tuple[list[int], list[int]]]]:
    """Chats of the given numbers of words, all different, as text and as words."""
    numbers = itertools.count()
    words = [([next(numbers) for _ in range(n)], [next(numbers) for _ in range(m)]) for n, m in lengths]
    return [(" ".join(map(str, p)), " ".join(map(str, r))) for p, r in words], words


@pytest.mark.parametrize("content", ["all", "prompt", "response"])
@pytest.mark.parametrize("bos", [1, None])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=12),
    context=st.integers(5, 14),
)
@same_file
def test_chats_equal_the_simple_implementation(
    write_chats: Write, content: str, bos: int | None, lengths: list[tuple[int, int]], context: int
) -> None:
    chats, words = _numbered(lengths)
    documents, tokenizer = write_chats(chats), WordTokenizer(bos_id=bos)
    opening = [] if bos is None else [bos]
    expected = []
    for document in documents.walk(0, 0):
        tokens, flags = _plain_chat(*words[document.number], opening, context, content)
        if any(flags):
            expected.append((document.number, tokens, flags))
    stream = _stream(documents, content, context=context, tokenizer=tokenizer)
    if not expected:
        with pytest.raises(UserError, match="has no content"):
            next(stream)
        return
    assert _sequences(list(stream)) == expected


def test_plain_documents_are_placed_between_the_prefixes(write: Callable[[list[str]], LocalDocuments]) -> None:
    """Content is everything except the user prefix (Gemma Scope, 4.5), truncated to the context."""
    stream = _stream(write(["1 2", "3 4 5 6 7 8"]), chat={"response": None}, context=8)
    found = {number: (tokens, content) for number, tokens, content in _sequences(list(stream))}
    no, yes = [False] * 3, [True]
    assert found[0] == ([1, 9011, 9012, 11, 12, 9013], no + 3 * yes)
    assert found[1] == ([1, 9011, 9012, 13, 14, 15, 16, 9013], no + 5 * yes)


def test_special_tokens_are_content_only_in_the_model_prefix(write_chats: Write) -> None:
    """In many chat formats the prefixes have special tokens; only the user prefix is excluded."""
    documents = write_chats([("1 <pad> 2", "3 <pad>")])
    chat = {"user": "<pad> 9001 ", "model": " <pad> 9003 "}
    assert _sequences(list(_stream(documents, chat=chat, context=12))) == [
        (
            0,
            [1, 3, 9011, 11, 3, 12, 3, 9013, 13, 3],
            [False, False, False, True, False, True, True, True, True, False],
        )
    ]
    bos = {"user": "", "model": " -9 -8 "}  # tokens 1 and 2: BOS and EOS
    assert _sequences(list(_stream(documents, chat=bos, context=12)))[0][2] == [
        *[False, True, False, True],
        *[False, False, True, False],
    ]


def test_a_token_across_two_pieces_belongs_to_the_piece_in_which_it_ends(write_chats: Write) -> None:
    chat = {"user": "9001 9", "model": "7 80"}
    stream = _stream(write_chats([("1 2 3", "4 5")]), "prompt", chat=chat, context=20)
    assert _sequences(list(stream)) == [
        (0, [1, 9011, 101, 12, 47, 814, 15], [False, False, True, True, False, False, False])
    ]


def test_only_the_heads_of_long_chats_are_tokenised(write_chats: Write) -> None:
    numbers = [" ".join(map(str, range(5_000))), " ".join(map(str, range(7_000, 12_000)))]
    long_words = " ".join(f"{7:040d}" for _ in range(50))
    chats = [(numbers[0], numbers[1]), ("1 2", numbers[1]), (long_words, "3"), ("4", long_words)]
    tokenizer = WordTokenizer()
    found = {n: (t, c) for n, t, c in _sequences(list(_stream(write_chats(chats), context=8, tokenizer=tokenizer)))}
    for number, (prompt, response) in enumerate(chats):
        words = ([int(word) for word in prompt.split()], [int(word) for word in response.split()])
        assert found[number] == _plain_chat(*words, [1], 8, "all")
    assert tokenizer.longest_text < 3_000


@pytest.mark.parametrize("content", ["all", "response"])
@pytest.mark.parametrize("stop", [0, 1, 4, 9, 17])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_a_resumed_stream_of_chats_gives_the_same_batches(
    write_chats: Write, content: str, stop: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "CHUNK_DOCUMENTS", chunk)
    chats, _ = _numbered([(1 + i % 5, i % 4) for i in range(20)])
    documents = write_chats(chats)
    stream = _stream(documents, content, epochs=None, seed=3)
    for _ in range(stop):
        next(stream)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = _stream(documents, content, epochs=None, seed=3)
    resumed.load_state_dict(state)
    for _ in range(8):
        expected, batch = next(stream), next(resumed)
        for name, value in vars(expected).items():
            assert torch.equal(value, getattr(batch, name)), name


def test_all_responses_to_one_prompt_are_in_one_part(write_chats: Write) -> None:
    prompts = [f"{i} {i + 1}" for i in range(100, 160)]
    documents = write_chats([(prompt, str(k)) for prompt in prompts for k in range(3)])
    held_out = {number for number, _, _ in _sequences(list(_stream(documents, part="held_out")))}
    training = {number for number, _, _ in _sequences(list(_stream(documents, part="training")))}
    expected = [i for i, prompt in enumerate(prompts) if is_in_part(prompt, "held_out", 0.3)]
    assert held_out == {3 * i + k for i in expected for k in range(3)}
    assert training == set(range(180)) - held_out
    assert 0 < len(expected) < 60


def test_chats_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["1 2", None, "3"], "response": ["4", "5", None], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    fields = {"text": (str(tmp_path / "a.parquet"),), "column": "prompt"}
    chat = {"user": USER, "model": MODEL, "response": "response"}
    documents = open_documents(config(chat=chat, **fields))
    walked = {d.number: (d.text, d.response) for d in documents.walk(0, 0)}
    assert walked == {0: ("1 2", "4"), 1: ("", "5"), 2: ("3", "")}
    for name, expected in (
        ("m", "data.chat.response is 'm', but"),
        ("n", "data.chat.response is 'n', which has the type"),
    ):
        with pytest.raises(UserError, match=expected):
            open_documents(config(chat=chat | {"response": name}, **fields))


def test_chats_of_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": str(i), "response": None if i == 2 else f"r{i}", "n": i} for i in range(25)]
    dataset = datasets.Dataset.from_list(rows).to_iterable_dataset()
    documents = HubDocuments(dataset, "prompt", "response", window=10)
    found = {d.number: (d.text, d.response) for d in documents.walk(0, 0)}
    assert found == {i: (str(i), "" if i == 2 else f"r{i}") for i in range(25)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    options: dict[str, Any] = {"subset": None, "split": "train", "revision": None}
    with pytest.raises(UserError, match=r"data\.chat\.response is 'n', which has type int in document"):
        next(open_hub("owner/name", "prompt", "n", **options).walk(0, 0))
    with pytest.raises(UserError, match=r"data\.chat\.response is 'm', but 'owner/name' has the columns prompt, resp"):
        open_hub("owner/name", "prompt", "m", **options)


def test_mistakes_are_one_message(tmp_path: Path, write_chats: Write) -> None:
    chat = {"user": USER, "model": MODEL}
    for fields, expected in (
        ({"chat": chat, "packing": "stream"}, "packing is 'stream', but every chat needs its own sequence"),
        (
            {"chat": chat | {"content": "response"}},
            "content is 'response', but the documents have no responses: set response",
        ),
        ({"chat": chat | {"content": "user"}}, "chat.content is 'user'"),
        ({"chat": {"user": USER}}, "'chat.model' is missing"),
        ({"chat": chat | {"prompt": "q"}}, "the key 'chat.prompt' is unknown"),
    ):
        with pytest.raises(UserError, match=expected):
            DataConfig.read(fields, "data")
    with pytest.raises(
        UserError, match="user and model have 3 tokens, which leaves none for documents in a context of 4: increase"
    ):
        _stream(write_chats([("1", "2")]), context=4)
    (tmp_path / "a.txt").write_text("1 2")
    with pytest.raises(UserError, match=r"data.chat.response is 'r', but .*a.txt' has no fields"):
        open_documents(config(text=(str(tmp_path / "a.txt"),), chat=chat | {"response": "r"}))
    documents = open_documents(
        config(text=(str(tmp_path / "chats.jsonl"),), column="prompt", chat=chat | {"response": "answer"})
    )
    with pytest.raises(
        UserError, match=r"line 1 has no field 'answer' \(it has 'prompt', 'response'\); set data\.chat\."
    ):
        next(documents.walk(0, 0))


def test_a_text_without_content_is_refused_instead_of_searched_for_ever(write_chats: Write) -> None:
    documents = write_chats([("1 2 3 4 5 6", "7"), ("8", "")])
    with pytest.raises(UserError, match=r"data\.chat: the whole part of x\.jsonl has no content \(data\.chat\.content"):
        next(_stream(documents, "response", epochs=None, context=8))


def test_plain_documents_have_no_response(write: Callable[[list[str]], LocalDocuments]) -> None:
    assert [document.response for document in write(["1", "2"]).walk(0, 0)] == ["", ""]
