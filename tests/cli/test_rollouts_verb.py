"""`panscope rollouts` and the flags of a chat model: what is written, said and refused."""

import json
import tomllib
from pathlib import Path

import pytest

from panscope import api
from panscope.activations.store.writer import read_manifest
from panscope.lms.load import load
from panscope.runs.identity import ModelChanges
from panscope.runs.row_sources import check_origin
from panscope.types import UserError
from tests.support.tiny_lm import Command, Tiny

CHAT = ("--chat-user", "w3 w4 ", "--chat-model", " w5")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = ["w6 w7 w8", "w9", " ", "w10 w11", "w12 w13 w14 w15"]
    path.write_text("".join(json.dumps({"prompt": text, "n": 1}) + "\n" for text in texts))
    return path


def test_the_same_command_gives_the_same_file(panscope: Command, tiny: Tiny, prompts: Path, tmp_path: Path):
    command = ("rollouts", tiny.model, "--prompts", prompts, "--count", 9, "--tokens", 6, *CHAT)
    calls = [panscope(*command, "--out", f"{name}.jsonl") for name in ("a", "folder/b")]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "folder" / "b.jsonl").read_bytes()
    assert panscope(*command, "--seed", 1, "--out", "c.jsonl").status == 0
    assert (tmp_path / "a.jsonl").read_bytes() != (tmp_path / "c.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"prompt", "response"}] * 9
    assert {line["prompt"] for line in lines} == {"w6 w7 w8", "w9", "w10 w11", "w12 w13 w14 w15"}
    words = [line["response"].split() for line in lines]
    assert max(map(len, words)) == 6
    assert all(word.startswith("w") for response in words for word in response), "no special token is text"
    assert calls[0].status == 0
    assert "a.jsonl: 9 rollouts of 4 prompts, " in calls[0].out
    assert "mean -log p " in calls[0].out
    assert list(tmp_path.glob("**/.*")) == []


def test_prompts_in_plain_text(panscope: Command, tiny: Tiny, tmp_path: Path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfw6 w7\r\n\r\nw8\n")
    assert panscope("rollouts", tiny.model, "--prompts", "p.txt", "--count", 2, "--out", "o.jsonl").status == 0
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in lines} == {"w6 w7", "w8"}


def test_prompts_that_fill_the_context_are_passed_over_aloud(panscope: Command, tiny: Tiny, tmp_path: Path):
    (tmp_path / "p.txt").write_text("\n".join([" ".join(["w6"] * 21), " ".join(["w7"] * 20), "w8"]))
    call = panscope("rollouts", tiny.model, "--prompts", "p.txt", "--count", 6, "--out", "o.jsonl", *CHAT)
    assert call.status == 0
    assert "2 prompts are as long as the context and were left out" in call.out
    assert "o.jsonl: 6 rollouts of 1 prompts, " in call.out


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", "w6", "is not a file of prompts: give a .jsonl file with a field 'prompt', or a .txt file"),
        ("p.jsonl", "", "has no prompt: write one on each line"),
        ("p.txt", " \n", "has no prompt: write one on each line"),
        ("p.jsonl", '{"prompt": "w6"}\nw7', "line 2 is not JSON; write one object per line"),
        ("p.jsonl", '\n{"text": "w6"}', "line 2 has no text in the field 'prompt'"),
        ("p.jsonl", '{"prompt": 5}', "line 1 has no text in the field 'prompt'"),
        ("p.jsonl", "[1]", "line 1 has no text in the field 'prompt'"),
        ("p.txt", "\xff", "cannot be read as UTF-8"),
        ("p.txt", "w6 " * 30, "all 1 of them are longer than the model's context of 24 tokens: give shorter ones"),
    ],
)
def test_prompts_that_cannot_be_used(
    panscope: Command, tiny: Tiny, tmp_path: Path, name: str, content: str, expected: str
):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    assert expected in panscope("rollouts", tiny.model, "--prompts", name, "--out", "o.jsonl").sentence()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_nothing_that_is_there_is_written_over(panscope: Command, tiny: Tiny, prompts: Path):
    before = prompts.read_bytes()
    call = panscope("rollouts", tiny.model, "--prompts", prompts, "--out", prompts)
    assert "already exists: choose another --out, or delete it" in call.sentence()
    assert prompts.read_bytes() == before


def test_settings_that_make_no_sense(panscope: Command, tiny: Tiny, prompts: Path, tmp_path: Path):
    command = ("rollouts", tiny.model, "--prompts", prompts, "--out", "o.jsonl")
    for flags, expected in (
        (("--count", 0), "count is 0"),
        (("--tokens", 0), "tokens is 0"),
        (("--temperature", 0), "temperature is 0"),
        (("--seed", -1), "seed is -1"),
        (("--dtype", "int8"), "dtype is 'int8'"),
    ):
        assert expected in panscope(*command, *flags).sentence()
    assert "is not a file of prompts" in panscope(*command[:3], "none.jsonl", "--out", "o.jsonl").sentence()
    spoilt = panscope("rollouts", tiny.spoilt_model, "--prompts", prompts, "--out", "o.jsonl").sentence()
    assert "probabilities are NaN or infinite" in spoilt
    assert not (tmp_path / "o.jsonl").exists()


def test_training_on_a_chat_model_from_flags(panscope: Command, tiny: Tiny, tmp_path: Path):
    flags = ("--width", 32, "--sparsity", 4, "--layers", 0, "--tokens", 640, "--out", "run")
    assert panscope("train", "--model", tiny.model, "--text", tiny.text, *CHAT, *flags).status == 0
    data = tomllib.loads((tmp_path / "run" / "suite.toml").read_text())["data"]
    assert data["chat"] == {"user": "w3 w4 ", "model": " w5", "content": "all"}
    assert panscope("train", "--resume", "run").status == 0
    beside = panscope("train", "--model", tiny.model, "--text", tiny.text, *flags[:-1], "b", "--chat-user", "w3 ")
    assert "'data.chat.model' is missing; set it" in beside.sentence()
    suite = tiny.suite(tmp_path / "s.toml", data={"packing": "stream"}, tokens=640)
    assert "packing is 'stream', but every chat needs its own sequence" in panscope("train", suite, *CHAT).sentence()


def test_a_store_of_a_chat_model_has_every_row_but_the_prefix(panscope: Command, tiny: Tiny, tmp_path: Path):
    """Two words before and one after each document; text and model mark give rows, BOS and the user's words none."""
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": f"w6 w{7 + i}"}) + "\n" for i in range(10)))
    suite = tiny.suite(tmp_path / "s.toml", data={"text": [str(tmp_path / "t.jsonl")], "held_out": 0.0}, tokens=640)
    assert panscope("collect", suite, *CHAT, "--out", "store").status == 0
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert manifest["rows"] == 10 * 3
    assert manifest["origin"]["data"]["chat"]["user"] == "w3 w4 "


def test_a_store_of_plain_documents_is_no_store_of_chats(panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", tokens=640)
    assert panscope("collect", suite, "--out", "plain").status == 0
    assert panscope("train", suite, "--store", "plain", "--out", "run").status == 0
    refused = panscope("train", suite, *CHAT, "--store", "plain", "--out", "other").sentence()
    assert "plain' was collected with data.chat = None, and the suite says {'user': 'w3 w4 '" in refused
    assert not (tmp_path / "other").exists()


def test_a_store_of_chats_from_before_there_were_conversations_is_still_used(
    panscope: Command, tiny: Tiny, tmp_path: Path
):
    suite = tiny.suite(tmp_path / "s.toml", data={"chat": {"user": "w3 w4 ", "model": " w5"}}, tokens=640)
    assert panscope("collect", suite, "--out", "store").status == 0
    origin = read_manifest(tmp_path / "store" / "manifest.json").origin
    chat = {name: value for name, value in origin.data["chat"].items() if name != "next_user"}
    old = origin.replace(data=origin.data | {"chat": chat})
    planned = api.plan(str(suite)).plan
    lm = load(planned.suite.model)
    check_origin(old, planned, lm, "store", ModelChanges())
    with pytest.raises(UserError, match=r"was collected with data\.chat = "):
        other = old.replace(data=old.data | {"chat": chat | {"next_user": "w3 "}})
        check_origin(other, planned, lm, "store", ModelChanges())


def test_conversations_are_trained_and_measured_on(panscope: Command, tiny: Tiny, tmp_path: Path):
    """WildChat's format: the same rows as in a file of chats where there is one turn, and more where there are more."""
    turns = [("user", "w6 w7 w8"), ("assistant", "w9 w10"), ("user", "w11"), ("assistant", "w12 w13 w14")]
    rows = [[{"role": role, "content": text} for role, text in turns[: 2 + 2 * (i % 2)]] for i in range(60)]
    for i, row in enumerate(rows):
        row[0]["content"] += f" w{3 + i % 30}"
    Path("wild.jsonl").write_text("".join(json.dumps({"conversation": row, "toxic": False}) + "\n" for row in rows))
    wild = ("--chat-user", "w3 w4 ", "--chat-model", " w5 ", "--chat-next-user", " w3 ")
    train = (
        "train",
        tiny.suite(tmp_path / "s.toml"),
        "--text",
        "wild.jsonl",
        "--column",
        "conversation",
        "--tokens",
        640,
    )
    call = panscope(*train, *wild, "--out", "run")
    assert call.status == 0, call.err
    chat = tomllib.loads(Path("run/suite.toml").read_text())["data"]["chat"]
    assert chat == {"user": "w3 w4 ", "model": " w5 ", "next_user": " w3 ", "content": "all"}
    tokens = {}
    for content in ("prompt", "response", "all"):
        call = panscope("eval", "run", "--chats", "wild.jsonl", *wild, "--content", content, "--label", content)
        assert call.status == 0, call.err
        file = next(Path("run").glob(f"coders/*/eval-{content}.json"))
        tokens[content] = json.loads(file.read_text())["tokens"]
    queries, responses, turns_with_model = 60 * 4 + 30, 60 * 2 + 30 * 3, 60 + 30
    assert tokens == {
        "prompt": queries,
        "response": responses,
        "all": queries + responses + turns_with_model,
    }
    call = panscope("eval", "run", "--chats", "wild.jsonl", *CHAT, "--label", "chats")
    assert "has no field 'response' (it has 'conversation', 'toxic')" in call.sentence()
    assert "has list in the field 'conversation'; expected text" in panscope(*train, *CHAT, "--out", "no").sentence()
