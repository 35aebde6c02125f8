"""`panscope collect`, and `panscope train` on what it stored."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from panscope.activations.live import LiveActivations
from panscope.activations.store.store import Store
from panscope.data.documents import DataConfig, open_documents
from panscope.data.tokens import TokenStream
from panscope.lms.load import LanguageModelConfig, load
from panscope.runs import collection as collecting
from panscope.types import Site
from tests.support.tiny_lm import Call, Command, Tiny

SITES = ["--sites", "resid_post", "mlp_out"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "BLOCK_ROWS", 256)


@pytest.fixture
def flags(tiny: Tiny) -> list[str]:
    return ["--model", str(tiny.model), "--text", str(tiny.text), "--shard-gib", "1e-4"]


@pytest.fixture
def stored(panscope: Command, flags: list[str], tmp_path: Path) -> Path:
    """A store of two sites of both layers."""
    done = panscope("collect", *flags, *SITES, "--tokens", 2000, "--out", "store")
    assert done.status == 0, done.err
    return tmp_path / "store"


def sentence(call: Call) -> str:
    assert call.status == 2, call.out + call.err
    return call.sentence()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_stored_is_what_the_model_computes(stored: Path, tiny: Tiny):
    """Every row is that of its token, whatever the order."""
    store = Store.open(stored)
    assert store.rows == 2000
    assert [str(site) for site in store.sites] == ["L00.mlp_out", "L00.resid_post", "L01.mlp_out", "L01.resid_post"]
    lm = load(LanguageModelConfig(path=str(tiny.model)))
    data = DataConfig(text=(str(tiny.text),), context=24)
    tokens = TokenStream(open_documents(data), lm.tokenizer, data, part="training", seed=0, epochs=1)
    expected = {}
    for batch in LiveActivations(lm, tokens, store.sites):
        places = zip(batch.document_ids.tolist(), batch.positions.tolist(), strict=True)
        for number, place in enumerate(places):
            expected[place] = [int(batch.token_ids[number]), *(batch.rows[site][number] for site in store.sites)]
    *columns, of_tokens = store.columns(store.sites)
    rows = [store.read(column, 0, store.rows) for column in columns]
    seen = set()
    for number, (token, document, position) in enumerate(store.read(of_tokens, 0, store.rows).tolist()):
        seen.add((document, position))
        token_then, *rows_then = expected[document, position]
        assert token == token_then
        for x, then in zip(rows, rows_then, strict=True):
            torch.testing.assert_close(x[number], then, rtol=1e-5, atol=1e-6)
    assert len(seen) == 2000


def test_the_same_command_again_changes_nothing(stored: Path, panscope: Command, flags: list[str]):
    before = tree(stored)
    again = panscope("collect", *flags, *SITES, "--tokens", 2000, "--out", stored)
    assert (again.status, "has all 2,000 rows" in again.out) == (0, True)
    assert tree(stored) == before


def test_sites_that_are_added_are_of_the_same_rows(stored: Path, panscope: Command, flags: list[str], tmp_path: Path):
    before = tree(stored)
    added = panscope("collect", *flags, "--sites", "attn_out", "--layers", 1, "--tokens", 2000, "--out", stored)
    assert added.status == 0, added.err
    now = tree(stored)
    assert {name: now[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    at_once = panscope("collect", *flags, *SITES, "attn_out", "--tokens", 2000, "--out", "at-once")
    assert at_once.status == 0
    for name, data in tree(tmp_path / "at-once").items():
        if "L00.attn_out" not in name and name != "manifest.json":
            assert now[name] == data, name
    assert Site(1, "attn_out") in Store.open(stored).sites


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--seed", "3"], "seed"),
        (["--context", "12"], "context"),
        (["--tokens", "1500"], "wanted_rows"),
        (["--store-dtype", "bfloat16"], "dtype"),
        (["--packing", "stream"], "packing"),
    ],
)
def test_other_rows_do_not_go_into_a_store(
    change: list[str], said: str, stored: Path, panscope: Command, flags: list[str]
):
    before = tree(stored)
    arguments = [*flags, *SITES, "--tokens", "2000", "--out", str(stored), *change]
    call = panscope("collect", *arguments)
    assert said in sentence(call)
    assert tree(stored) == before


def test_verify_names_what_is_damaged(stored: Path, panscope: Command):
    assert panscope("collect", "--verify", stored).status == 0
    victim = stored / "sites" / "L01.mlp_out" / "00000.safetensors"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    call = panscope("collect", "--verify", stored)
    assert call.status == 2
    assert str(victim) in call.out


def test_mistakes_are_said(panscope: Command, flags: list[str], tmp_path: Path, tiny: Tiny):
    assert "--out" in sentence(panscope("collect", *flags, *SITES))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "is not a store" in sentence(panscope("collect", *flags, *SITES, "--out", "full"))
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert "not a store" in sentence(panscope("train", tiny.suite(tmp_path / "s.toml"), "--store", "full"))
    assert "is not a folder" in sentence(panscope("collect", "--verify", "nowhere"))


def train(panscope: Command, path: Path, *arguments: object) -> Call:
    done = panscope("train", path, *arguments)
    assert done.status == 0, done.err
    return done


STORE: dict[str, Any] = {"tokens": 2000, "train": {"batch": 50, "log_every": 5, "checkpoint_every": 10}}


@pytest.fixture
def suite(tiny: Tiny, tmp_path: Path, stored: Path) -> Path:
    """A suite that the store was collected for, but for its held-out share."""
    fields = STORE | {"data": {"held_out": 0.05, "context": 24}}
    return tiny.suite(tmp_path / "suite.toml", {"width": 32, "sparsity": 4}, **fields)


def test_training_on_a_store(panscope: Command, suite: Path, stored: Path, tmp_path: Path):
    """The place of a run is one number, and a run that is taken up again ends with the same bytes."""
    train(panscope, suite, "--store", stored, "--out", "whole")
    whole = tmp_path / "whole"
    source = [
        json.loads(path.read_text())["state"]
        for path in (whole / "checkpoint" / "step_00000040").glob("*.json")
        if '"part": "source"' in path.read_text()
    ]
    assert source[0]["given"] == 40
    shutil.copytree(whole, tmp_path / "cut")
    cut = tmp_path / "cut"
    shutil.rmtree(cut / "checkpoint" / "step_00000040")
    shutil.rmtree(cut / "coders")
    status = json.loads((cut / "status.json").read_text())
    assert status["stage"] == "done"
    (cut / "status.json").unlink()
    again = panscope("train", "--resume", cut)
    assert again.status == 0, again.err
    for path in whole.glob("coders/*/*.safetensors"):
        assert path.read_bytes() == (cut / path.relative_to(whole)).read_bytes()


def test_a_store_of_another_model_is_refused(panscope: Command, suite: Path, stored: Path, tiny: Tiny, tmp_path: Path):
    other = tmp_path / "other-lm"
    shutil.copytree(tiny.model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: x + 0.01 for name, x in weights.items()}, other / "model.safetensors", {"format": "pt"})
    said = sentence(panscope("train", suite, "--store", stored, "--model", other, "--out", "run"))
    assert "activations of another model" in said
    assert not (tmp_path / "run").exists()


def test_a_store_that_does_not_fit_is_refused(panscope: Command, suite: Path, stored: Path, tiny: Tiny, tmp_path: Path):
    said = sentence(panscope("train", suite, "--store", stored, "--out", "run", "--context", "12"))
    assert "data.context = 24, and the suite says 12" in said
    fields = STORE | {"data": {"held_out": 0.05, "context": 24}}
    other = tiny.suite(tmp_path / "other.toml", {"width": 32, "sparsity": 4, "sites": "attn_out"}, **fields)
    assert "has no site 'L00.attn_out'" in sentence(panscope("train", other, "--store", stored, "--out", "run"))
    assert not (tmp_path / "run").exists()


def test_a_store_is_collected_by_one_process(stored: Path, panscope: Command, flags: list[str]):
    """The lock of a process that is alive is said; that of a dead one is no hindrance."""
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, stored / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        call = panscope("collect", *flags, "--sites", "attn_out", "--tokens", 2000, "--out", stored)
        assert "in use by another process" in sentence(call)
        holder.kill()
    assert panscope("collect", *flags, "--sites", "attn_out", "--tokens", 2000, "--out", stored).status == 0


def test_text_that_was_changed_is_another_one(
    panscope: Command, flags: list[str], stored: Path, tiny: Tiny, tmp_path: Path
):
    """Also where the name is the same; a file that was only moved is the same text."""
    moved, other = tmp_path / "moved" / tiny.text.name, tmp_path / "other" / tiny.text.name
    for path in (moved, other):
        path.parent.mkdir()
        shutil.copy(tiny.text, path)
    other.write_text(other.read_text().replace("w7", "w8"))
    rest = [*SITES, "--tokens", "2000", "--out", str(stored), "--model", str(tiny.model), "--shard-gib", "1e-4"]
    assert panscope("collect", "--text", moved, *rest).status == 0
    assert "was created with text = " in sentence(panscope("collect", "--text", other, *rest))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["collect", "--out", "s3://bucket/mine"], "'s3://bucket/mine' is not on this machine"),
        (["collect", "--verify", "store", "--tokens", "4"], "--tokens cannot be combined with it"),
        (["collect", "--verify", "ftp://somewhere/x"], "is not a valid location"),
        (
            ["train", "--store", "a", "--servers", "grpc://b:1", "--width", "4", "--sparsity", "2"],
            "two sources of rows",
        ),
        (["serve", "store", "--host", "0.0.0.0"], "can be reached from other machines"),
        (["serve", "store", "--sites", "resid_post"], "write it as L03.mlp_out"),
        (["serve", "store", "--windows", "0"], "windows is 0: give at least 1"),
    ],
)
def test_wrong_flags_are_said(arguments: list[str], said: str, panscope: Command, stored: Path, tmp_path: Path):
    assert said in sentence(panscope(*arguments))
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize("token", ["s\u00e9cret", "line\n", " space"])
def test_a_token_that_cannot_be_sent_is_said(
    token: str, panscope: Command, stored: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PANSCOPE_TOKEN", token)
    assert "PANSCOPE_TOKEN has a character that cannot be sent" in sentence(panscope("serve", stored))


def test_windows_that_do_not_fit_are_said(panscope: Command, stored: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 100}[name])
    assert "windows and window-rows make" in sentence(panscope("serve", stored))


def test_a_bucket_that_does_not_fit_is_said(
    panscope: Command, flags: list[str], stored: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(collecting, "memory_bytes", lambda config: 200_000)
    call = panscope("collect", *flags, "--sites", "attn_out", "--tokens", 2000, "--out", stored)
    assert "collect fewer sites at a time" in sentence(call)


def test_a_run_finds_its_store_from_anywhere(
    panscope: Command, suite: Path, stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train(panscope, suite, "--store", "store", "--out", "run")
    shutil.rmtree(tmp_path / "run" / "coders")
    (tmp_path / "run" / "status.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = panscope("train", "--resume", tmp_path / "run")
    assert again.status == 0, again.err
