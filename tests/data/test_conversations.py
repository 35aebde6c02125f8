"""Conversations of several turns, compared with a simple word-by-word implementation; and rows that are none."""

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
from panscope.data.conversations import turns_of
from panscope.data.documents import DataConfig, LocalDocuments, open_documents
from panscope.data.hub import HubDocuments, open_hub
from panscope.data.source import is_in_part
from panscope.data.tokens import TokenStream
from panscope.types import UserError
from tests.support.word_text import WordTokenizer, config

USER, MODEL, NEXT = "9001 9002 ", " 9003 ", " 9004 9005 "
CHAT = {"user": USER, "model": MODEL, "next_user": NEXT}
Turns = list[dict[str, Any]]
Write = Callable[[list[Any]], LocalDocuments]


def conversation(*contents: str | None) -> Turns:
    """Turns of the user and the assistant, with further keys as WildChat has them."""
    roles = ["user", "assistant"] * len(contents)
    return [{"content": text, "role": role, "toxic": False} for role, text in zip(roles, contents, strict=False)]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write conversations to a .jsonl file and open them."""

    def write(rows: list[Any]) -> LocalDocuments:
        path = tmp_path / "wild.jsonl"
        path.write_text("".join(json.dumps({"id": 1, "conversation": row}) + "\n" for row in rows))
        documents = open_documents(config(text=(str(path),), column="conversation", chat=CHAT))
        assert isinstance(documents, LocalDocuments)
        return documents

    return write


def stream(documents: Any, content: str = "all", **options: Any) -> TokenStream:
    given: dict[str, Any] = {"part": "all", "seed": 0, "epochs": 1}
    given |= {name: options.pop(name) for name in ("part", "seed", "epochs") if name in options}
    tokenizer = options.pop("tokenizer", None) or WordTokenizer()
    return TokenStream(documents, tokenizer, config(chat=CHAT | {"content": content}, **options), **given)


def sequences(batches: TokenStream) -> dict[int, tuple[list[int], list[bool]]]:
    """Tokens, and which of them are content, by document."""
    found = {}
    for batch in batches:
        for i, mask in enumerate(batch.attention_mask):
            number = int(batch.document_ids[i][0])
            assert number not in found
            found[number] = batch.token_ids[i][mask].tolist(), batch.content[i][mask].tolist()
    return found


def plain(turns: list[list[int]], context: int, content: str) -> tuple[list[int], list[bool]]:
    """Tokens and content of one conversation, turn by turn and word by word."""
    words, roles = [-9], ["bos"]
    for number, start in enumerate(range(0, len(turns), 2)):
        query, answer = turns[start], turns[start + 1] if start + 1 < len(turns) else []
        before = [9001, 9002] if number == 0 else [9004, 9005]
        if number == 0:
            query = query[: context - 4]
        elif len(words) + 2 + len(query) + 1 > context:
            break
        words += before + query + [9003] + answer
        roles += ["user"] * 2 + ["prompt"] * len(query) + ["model"] + ["response"] * len(answer)
    wanted = {"all": {"prompt", "model", "response"}, "prompt": {"prompt"}, "response": {"response"}}[content]
    return [word + 10 for word in words][:context], [role in wanted for role in roles][:context]


@pytest.mark.parametrize("content", ["all", "prompt", "response"])
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=1, max_size=8),
    context=st.integers(5, 30),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_conversations_equal_the_simple_implementation(
    write: Write, content: str, lengths: list[list[int]], context: int
) -> None:
    words = [[[100 * i + 10 * j + k for k in range(n)] for j, n in enumerate(row)] for i, row in enumerate(lengths)]
    documents = write([conversation(*(" ".join(map(str, turn)) for turn in row)) for row in words])
    expected = {i: plain(row, context, content) for i, row in enumerate(words)}
    expected = {i: found for i, found in expected.items() if any(found[1])}
    batches = stream(documents, content, context=context)
    if not expected:
        with pytest.raises(UserError, match="has no content"):
            next(batches)
        return
    assert sequences(batches) == expected


def test_a_conversation_of_one_turn_is_the_chat_of_its_query_and_response(write: Write, tmp_path: Path) -> None:
    documents = write([conversation("1 2 3", "4 5"), conversation("6")])
    path = tmp_path / "chats.jsonl"
    path.write_text('{"prompt": "1 2 3", "response": "4 5"}\n{"prompt": "6", "response": ""}\n')
    chat = {"user": USER, "model": MODEL, "response": "response"}
    fields: dict[str, Any] = {"text": (str(path),), "column": "prompt", "chat": chat, "context": 9}
    one_turn = TokenStream(
        open_documents(config(**fields)), WordTokenizer(), config(**fields), part="all", seed=0, epochs=1
    )
    assert sequences(stream(documents, context=9)) == sequences(one_turn)


def test_every_prefix_of_a_user_is_read_and_never_content(write: Write) -> None:
    (found,) = sequences(stream(write([conversation("1", "2", "3", "4")]), context=30)).values()
    no, yes = False, True
    assert found[0] == [1, 9011, 9012, 11, 9013, 12, 9014, 9015, 13, 9013, 14]
    assert found[1] == [no, no, no, yes, yes, yes, no, no, yes, yes, yes]


def test_only_the_heads_of_long_conversations_are_tokenised(write: Write) -> None:
    """Also where the first turns are long in characters and short in tokens, so that later ones are needed."""
    numbers = " ".join(map(str, range(5_000)))
    long_word, long_words = f"{7:0300d}", " ".join(f"{7:0120d}" for _ in range(3))
    rows = [
        ["1 2", *[numbers] * 49],
        ["1", long_word, long_word, "8", "9 10", "11"],
        ["1", long_words, long_words, "8", "9 10", "11"],
        ["1", "2", long_words, "3"] * 4,
    ]
    tokenizer = WordTokenizer()
    found = sequences(stream(write([conversation(*row) for row in rows]), context=20, tokenizer=tokenizer))
    for i, row in enumerate(rows):
        assert found[i] == plain([[int(word) for word in turn.split()] for turn in row], 20, "all"), i
    assert tokenizer.longest_text < 4_000


@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_a_resumed_stream_gives_the_same_batches(write: Write, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_module, "CHUNK_DOCUMENTS", 3)
    documents = write([conversation(*(f"{i} {j}" for j in range(1 + i % 6))) for i in range(20)])
    first = stream(documents, epochs=None, seed=3)
    for _ in range(stop):
        next(first)
    resumed = stream(documents, epochs=None, seed=3)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(8):
        expected, batch = next(first), next(resumed)
        for name, value in vars(expected).items():
            assert torch.equal(value, getattr(batch, name)), name


def test_the_first_query_decides_the_part(write: Write) -> None:
    queries = [f"{i} {i + 1}" for i in range(100, 160)]
    documents = write([conversation(query, "1", str(k)) for query in queries for k in range(3)])
    held_out = sequences(stream(documents, part="held_out")).keys()
    expected = [i for i, query in enumerate(queries) if is_in_part(query, "held_out", 0.3)]
    assert held_out == {3 * i + k for i in expected for k in range(3)} and 0 < len(expected) < 60


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (conversation("a", "b", "c"), ("a", "b", "c")),
        (conversation("a", "b", " \n", "d"), ("a", "b")),
        (conversation("a", ""), ("a",)),
        (conversation("a", None, "c"), ("a",)),
        (conversation(""), ()),
        (conversation(), ()),
        (None, ()),
        ([*conversation("a", "b"), {"role": "assistant", "content": "c"}], ("a", "b")),
        ([*conversation("a"), {"role": "user", "content": "c"}], ("a",)),
        ([{"role": "assistant", "content": "a"}, *conversation("b")], ()),
        ([{"role": "system", "content": "a"}, *conversation("b", "c")], ()),
        ([*conversation("a", "b"), {"role": "tool", "content": "c"}], ()),
        (conversation("\ud800 a"), ("\ufffd a",)),
    ],
)
def test_what_is_kept(turns: Any, kept: tuple[str, ...]) -> None:
    assert turns_of(turns, "here") == kept


@pytest.mark.parametrize(
    ("turns", "sentence"),
    [
        ("a", "line 1 has str in place of a conversation; expected a list of turns, each with a role and a content"),
        ({"role": "user", "content": "a"}, "line 1 has dict in place of a conversation"),
        (["a"], r"line 1, turn 1 has no role and content \(it is str\)"),
        (
            [{"from": "human", "value": "a"}],
            r"turn 1 has no role and content \(it has 'from', 'value'\); expected both",
        ),
        ([*conversation("a"), {"content": "b"}], r"turn 2 has no role and content \(it has 'content'\)"),
        ([{"role": "human", "content": "a"}], "turn 1 has the role 'human'; expected one of user, assistant"),
        ([{"role": ["user"], "content": "a"}], r"turn 1 has the role \['user'\]; expected one of"),
        ([{"role": "user", "content": 7}], "turn 1 has int as its content; expected text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "turn 1 has list as its content; expected text"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(write: Write, turns: Any, sentence: str) -> None:
    with pytest.raises(
        UserError,
        match=r"^data.column: .*wild\.jsonl' " + (sentence if sentence.startswith("line") else "line 1, " + sentence),
    ):
        next(write([turns]).walk(0, 0))


def test_rows_that_are_left_out_are_not_read_as_text(write: Write) -> None:
    system = [{"role": "system", "content": "1"}, *conversation("2", "3")]
    documents = write([system, None, conversation("4", "5"), conversation("", "6")])
    assert list(sequences(stream(documents))) == [2]
    with pytest.raises(UserError, match=r"data\.chat: the whole part of .* has no content"):
        next(stream(write([system])))


def test_parquet(tmp_path: Path) -> None:
    rows = [conversation("1 2", "3"), None, conversation("4", "5", "6")]
    path = tmp_path / "wild.parquet"
    pyarrow.parquet.write_table(
        pa.table({"conversation": rows, "n": [1, 2, 3], "tags": [["a"]] * 3}), path, row_group_size=2
    )
    fields: dict[str, Any] = {"text": (str(path),), "chat": CHAT}
    found = {d.number: d for d in open_documents(config(column="conversation", **fields)).walk(0, 0)}
    assert [(found[i].text, found[i].response, found[i].later) for i in range(3)] == [
        ("1 2", "3", ()),
        ("", "", ()),
        ("4", "5", ("6",)),
    ]
    for column, sentence in (
        ("n", "data.column is 'n', which has the type int64 in .*; choose a column of conversations"),
        (
            "tags",
            r"data.column is 'tags', which has the type list<.*; choose a column of conversations \(lists of turns",
        ),
        ("m", "data.column is 'm', but .* has the columns conversation, n, tags"),
    ):
        with pytest.raises(UserError, match=sentence):
            open_documents(config(column=column, **fields))
    with pytest.raises(UserError, match="choose a column of text"):
        open_documents(config(column="conversation", text=(str(path),)))


def test_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"conversation": conversation(str(i), "a", f"b{i}") if i != 2 else None, "n": i} for i in range(25)]
    dataset = datasets.Dataset.from_list(rows).to_iterable_dataset()
    documents = HubDocuments(dataset, "conversation", conversations=True, window=10)
    found = {d.number: (d.text, d.response, d.later) for d in documents.walk(0, 0)}
    assert found == {i: (str(i), "a", (f"b{i}",)) if i != 2 else ("", "", ()) for i in range(25)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    fields = {"text": ("allenai/WildChat",), "column": "conversation", "chat": CHAT}
    assert len(list(open_documents(config(**fields)).walk(0, 0))) == 25
    options: dict[str, Any] = {"subset": None, "split": "train", "revision": None, "conversations": True}
    with pytest.raises(UserError, match=r"document \d+ has int in place of a conversation"):
        next(open_hub("owner/name", "n", **options).walk(0, 0))


def test_mistakes_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="response and next_user are both set, but conversations have their responses"):
        DataConfig.read({"chat": CHAT | {"response": "r"}}, "data")
    assert DataConfig.read({"chat": CHAT | {"content": "response"}}, "data").chat is not None
    (tmp_path / "a.txt").write_text("1 2")
    with pytest.raises(UserError, match=r"data.column is 'text', but .*a.txt' has no fields: use .jsonl or .parquet"):
        open_documents(config(text=(str(tmp_path / "a.txt"),), chat=CHAT))
