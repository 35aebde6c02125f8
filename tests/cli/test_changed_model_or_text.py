"""What a run is of: a language model or text that changed between two commands is refused in one sentence.

Each change keeps what a careless comparison looks at: names, sizes, the number of documents, the first weights.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from panscope.runs import collection
from panscope.storage.sealed import read_sealed
from tests.support.tiny_lm import Call, Command, Tiny


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Tiny:
    """The model and the text in folders that may be changed."""
    shutil.copytree(tiny.model, tmp_path / "lm")
    shutil.copyfile(tiny.text, tmp_path / "text.jsonl")
    return Tiny(tmp_path / "lm", tiny.spoilt_model, tmp_path / "text.jsonl")


@pytest.fixture
def suite(copy: Tiny, tmp_path: Path) -> Path:
    return copy.suite(tmp_path / "suite.toml")


@pytest.fixture
def finished(panscope: Command, suite: Path, tmp_path: Path) -> Path:
    assert panscope("train", suite, "--out", "run").status == 0
    return tmp_path / "run"


@pytest.fixture
def stopped(finished: Path) -> Path:
    """The run as it was after its first checkpoint but one."""
    shutil.rmtree(finished / "coders")
    shutil.rmtree(finished / "checkpoint" / "step_00000040")
    (finished / "status.json").unlink()
    return finished


def weights(lm: Path) -> None:
    """One weight, far from the beginning of its tensor."""
    tensors = load_file(lm / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][-1, -1] += 1e-3
    save_file(tensors, lm / "model.safetensors", {"format": "pt"})


def configuration(lm: Path) -> None:
    """A field that no weight shows."""
    fields = json.loads((lm / "config.json").read_text())
    fields["rms_norm_eps"] = 1e-3
    (lm / "config.json").write_text(json.dumps(fields))


def tokenizer(lm: Path) -> None:
    """Two words change places; the vocabulary has the same words and the same size."""
    text = (lm / "tokenizer.json").read_text()
    fields = json.loads(text)
    words = fields["model"]["vocab"]
    words["w5"], words["w6"] = words["w6"], words["w5"]
    (lm / "tokenizer.json").write_text(json.dumps(fields))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (weights, "its weights differ (xxh3 "),
    "configuration": (configuration, "its configuration differs (rms_norm_eps 1e-06, now 0.001)"),
    "tokenizer": (tokenizer, "its tokenizer differs (xxh3 "),
}
every_change = pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES)


def other_text(path: Path) -> None:
    """Every document with its words in another order: as many documents, as many bytes, as many tokens."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    turned = [{"text": " ".join(reversed(line["text"].split()))} for line in lines]
    before = path.stat().st_size
    path.write_text("".join(json.dumps(line) + "\n" for line in turned))
    assert path.stat().st_size == before


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(call: Call, folder: Path, before: dict[str, bytes], *words: str) -> None:
    """One sentence with all of `words`, and nothing in the folder has changed."""
    said = call.sentence()
    for word in words:
        assert word in said, said
    now = {name: content for name, content in tree(folder).items() if not name.endswith(".lock")}
    assert now == {name: content for name, content in before.items() if not name.endswith(".lock")}


@every_change
def test_a_run_is_not_resumed_on_a_changed_model(
    panscope: Command, stopped: Path, copy: Tiny, change: Callable[[Path], None], words: str
):
    change(copy.model)
    before = tree(stopped)
    call = panscope("train", "--resume", stopped)
    refused(call, stopped, before, "has changed since the checkpoint of step 30", words, "--accept-changed-model")


def test_nor_on_changed_text(panscope: Command, stopped: Path, copy: Tiny):
    other_text(copy.text)
    before = tree(stopped)
    call = panscope("train", "--resume", stopped, "--accept-changed-model")
    refused(call, stopped, before, "the text has changed since the checkpoint of step 30", "text.jsonl", "new run")


def test_an_accepted_change_is_recorded_everywhere(panscope: Command, stopped: Path, copy: Tiny):
    weights(copy.model)
    assert panscope("train", "--resume", stopped, "--accept-changed-model").status == 0
    folder = min((stopped / "coders").iterdir())
    (change,) = json.loads((folder / "config.json").read_text())["identity"]["accepted_changes"]
    assert change.startswith("its weights differ (xxh3 ")
    assert read_sealed(folder / "eval.json")["evaluated_on"]["accepted_changes"] == [change]
    assert panscope("eval", stopped).status == 0
    assert read_sealed(folder / "eval.json")["evaluated_on"]["accepted_changes"] == [change]


@every_change
def test_results_are_not_overwritten_by_those_on_a_changed_model(
    panscope: Command, finished: Path, copy: Tiny, change: Callable[[Path], None], words: str
):
    change(copy.model)
    before = tree(finished)
    call = panscope("eval", finished)
    refused(call, finished, before, "was trained on another model than", words, "--model", "--accept-changed-model")


def test_measuring_on_a_changed_model_may_be_meant(panscope: Command, finished: Path, copy: Tiny):
    configuration(copy.model)
    assert panscope("eval", finished, "--accept-changed-model").status == 0
    folder = min((finished / "coders").iterdir())
    about = read_sealed(folder / "eval.json")["evaluated_on"]
    assert about["accepted_changes"] == ["its configuration differs (rms_norm_eps 1e-06, now 0.001)"]


def test_another_model_by_name_needs_no_acceptance(panscope: Command, finished: Path, copy: Tiny, tmp_path: Path):
    shutil.copytree(copy.model, tmp_path / "tuned")
    weights(tmp_path / "tuned")
    assert panscope("eval", finished, "--model", tmp_path / "tuned").status == 0


def test_parts_of_an_evaluation_are_of_one_tokenizer(panscope: Command, finished: Path, copy: Tiny):
    assert panscope("eval", finished, "--part", "1/2").status == 0
    tokenizer(copy.model)
    before = tree(finished)
    refused(panscope("eval", finished, "--part", "2/2"), finished, before, "its tokenizer differs")


@pytest.fixture
def stored(panscope: Command, copy: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(collection, "BLOCK_ROWS", 256)
    flags = ["--model", copy.model, "--text", copy.text, "--shard-gib", "1e-4", "--tokens", 2560]
    done = panscope("collect", *flags, "--sites", "resid_post", "--out", "store")
    assert done.status == 0, done.err
    return tmp_path / "store"


def of_the_store(copy: Tiny, tmp_path: Path) -> Path:
    return copy.suite(tmp_path / "suite.toml", data={"held_out": 0.05, "context": 24})


@every_change
def test_stored_rows_are_not_used_for_a_changed_model(
    panscope: Command, stored: Path, copy: Tiny, tmp_path: Path, change: Callable[[Path], None], words: str
):
    change(copy.model)
    suite = of_the_store(copy, tmp_path)
    said = panscope("train", suite, "--store", stored, "--out", "run").sentence()
    assert "holds activations of another model" in said and words in said and "--accept-changed-model" in said
    assert not (tmp_path / "run").exists()
    assert panscope("train", suite, "--store", stored, "--accept-changed-model", "--out", "run").status == 0
    folder = min((tmp_path / "run" / "coders").iterdir())
    assert read_sealed(folder / "eval.json")["evaluated_on"]["accepted_changes"][0].startswith(words)


def test_stored_rows_are_not_used_with_text_of_the_same_size(
    panscope: Command, stored: Path, copy: Tiny, tmp_path: Path
):
    other_text(copy.text)
    said = panscope("train", of_the_store(copy, tmp_path), "--store", stored, "--out", "run").sentence()
    assert "the text has changed since" in said and "was collected" in said
    assert not (tmp_path / "run").exists()


@every_change
def test_sites_of_a_changed_model_are_not_added_to_a_store(
    panscope: Command, stored: Path, copy: Tiny, change: Callable[[Path], None], words: str
):
    change(copy.model)
    before = tree(stored)
    flags = ["--model", copy.model, "--text", copy.text, "--shard-gib", "1e-4", "--tokens", 2560]
    call = panscope("collect", *flags, "--sites", "mlp_out", "--out", "store")
    refused(call, stored, before, "holds activations of another model", words)


def test_an_emptied_suite_is_refused(panscope: Command, finished: Path):
    """By every verb that reads a run."""
    status = json.loads((finished / "status.json").read_text())
    assert status["stage"] == "done"
    export = ("export", "--format", "saelens", "--out", "x")
    for content in ("", "name = 'suite'\n", "coders = 3\n"):
        (finished / "suite.toml").write_text(content)
        for verb, *flags in (("eval",), ("report",), ("geometry",), export, ("train", "--resume")):
            said = panscope(verb, *flags, finished).sentence()
            assert "suite.toml' has no [[coders]] tables: it was emptied or cut off; put it back as it was" in said


def test_a_flag_for_changed_models_needs_something_that_could_have_changed(panscope: Command, suite: Path):
    said = panscope("train", suite, "--accept-changed-model").sentence()
    assert "--accept-changed-model goes with --resume, --store or --servers" in said


def identity_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["identity"]["model"]


def test_the_identity_is_that_of_the_files_whatever_the_precision(
    panscope: Command, copy: Tiny, finished: Path, tmp_path: Path
):
    """And of the tensors, not of how they are divided into files."""
    suite = copy.suite(tmp_path / "half.toml", model={"dtype": "bfloat16"})
    assert panscope("train", suite, "--out", "half").status == 0
    tensors = load_file(copy.model / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, copy.model / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (copy.model / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy.model / "model.safetensors").unlink()
    assert panscope("train", copy.suite(tmp_path / "divided.toml"), "--out", "divided").status == 0
    coders = [min((tmp_path / run / "coders").iterdir()) for run in ("run", "half", "divided")]
    first, second, third = map(identity_of, coders)
    assert first == second == third
