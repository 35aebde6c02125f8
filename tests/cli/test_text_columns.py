"""`--column`, `--subset`, `--split` and `--text-revision`: which text is read, and what is said where there is none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest

from panscope.api.verbs import make_rollouts
from panscope.config import read_toml
from panscope.lms.load import LanguageModelConfig
from panscope.runs.run import Run
from panscope.types import UserError
from tests.support.tiny_lm import Command, Tiny

SMALL = ("--sites", "resid_post", "--layers", 0, "--width", 32, "--sparsity", 4, "--tokens", 640, "--batch", 64)


@pytest.fixture
def stories(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny text in the field `story`, beside another field."""
    lines = [json.loads(line)["text"] for line in tiny.text.read_text().splitlines()]
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps({"n": i, "story": text}) + "\n" for i, text in enumerate(lines)))
    return path


@pytest.fixture
def hub_dataset(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """`someone/stories`, with two subsets of two splits each, read from this machine; what it was asked for."""
    texts = [json.loads(line)["text"] for line in tiny.text.read_text().splitlines()]
    for subset in ("plain", "rare"):
        for split, share in (("train", texts[:200]), ("validation", texts[200:])):
            folder = tmp_path / "hub" / subset
            folder.mkdir(parents=True, exist_ok=True)
            rows = "".join(json.dumps({"story": text}) + "\n" for text in share)
            (folder / f"{split}.jsonl").write_text(rows)
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}/{split}.jsonl\n" for split in ("train", "validation"))
        for name in ("plain", "rare")
    )
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    asked: list[dict[str, Any]] = []
    load = datasets.load_dataset

    def from_here(name: str, subset: str | None, *, revision: str | None, **options: Any) -> Any:
        asked.append({"name": name, "subset": subset, "split": options["split"], "revision": revision})
        return load(str(tmp_path / "hub"), subset, **options)

    monkeypatch.setattr(datasets, "load_dataset", from_here)
    return asked


def test_train_collect_and_eval_read_the_column(panscope: Command, tiny: Tiny, stories: Path):
    call = panscope("train", "--model", tiny.model, "--text", stories, "--column", "story", *SMALL, "--out", "run")
    assert call.status == 0, call.err
    assert Run.open("run").suite.data.column == "story"
    for arguments in (("train", *SMALL), ("collect", "--sites", "resid_post", "--tokens", 100)):
        call = panscope(*arguments, "--model", tiny.model, "--text", stories, "--out", "other")
        sentence = "has no field 'text' (it has 'n', 'story'); set data.column to the field with the text"
        assert sentence in call.sentence()
    collected = ("collect", "--model", tiny.model, "--sites", "resid_post", "--layers", 0, "--tokens", 100)
    assert panscope(*collected, "--text", stories, "--column", "story", "--out", "store").status == 0
    lengths = []
    for text, column in ((stories, "story"), (tiny.text, "text")):
        call = panscope("eval", "run", "--text", text, "--column", column, "--label", column)
        assert call.status == 0, call.err
        (file,) = Path("run").glob(f"coders/*/eval-{column}.json")
        lengths.append(json.loads(file.read_text())["tokens"])
    assert lengths[0] == lengths[1] > 3000
    call = panscope("eval", "run", "--text", stories, "--column", "n")
    assert "has int in the field 'n'; expected text: set data.column" in call.sentence()
    table = pyarrow.table({"body": ["w3 w4 w5"], "n": [1]})
    pyarrow.parquet.write_table(table, "a.parquet")
    call = panscope("eval", "run", "--text", "a.parquet")
    assert "data.column is 'story', but 'a.parquet' has the columns body, n" in call.sentence()


def test_the_subset_split_and_revision_of_a_hub_dataset(
    panscope: Command, tiny: Tiny, stories: Path, hub_dataset: list[dict[str, Any]], tmp_path: Path
):
    dataset = ("--text", "someone/stories", "--column", "story")
    from_rare = (*dataset, "--subset", "rare", "--text-revision", "v1")
    call = panscope("train", "--model", tiny.model, *from_rare, *SMALL, "--out", "run")
    assert call.status == 0, call.err
    asked = {"name": "someone/stories", "subset": "rare", "split": "train", "revision": "v1"}
    assert hub_dataset and all(one == asked for one in hub_dataset)
    data = read_toml(Path("run/suite.toml"))["data"]
    assert (data["subset"], data["split"], data["revision"]) == ("rare", "train", "v1")
    hub_dataset.clear()
    call = panscope("eval", "run", *dataset, "--subset", "plain", "--split", "validation")
    assert call.status == 0, call.err
    asked = {"name": "someone/stories", "subset": "plain", "split": "validation", "revision": None}
    assert hub_dataset and all(one == asked for one in hub_dataset)
    (file,) = Path("run").glob("coders/*/eval-text.json")
    on = json.loads(file.read_text())["evaluated_on"]
    assert on["text_identity"] == ["someone/stories plain validation"]
    for arguments, sentence in (
        (
            (*dataset, "--subset", "rare", "--split", "test"),
            "Bad split: test. Available splits: ['train', 'validation']",
        ),
        ((*dataset, "--subset", "worse"), "'worse' not found. Available: ['plain', 'rare']"),
        (
            (*dataset[:2], "--subset", "rare", "--column", "text"),
            "data.column is 'text', but 'someone/stories' has the columns story",
        ),
    ):
        for command in (("eval", "run"), ("train", "--model", tiny.model, *SMALL, "--out", "other")):
            assert sentence in panscope(*command, *arguments).sentence()
    # Text from files in place of the dataset needs nothing to be taken back.
    assert panscope("eval", "run", "--text", stories, "--label", "files").status == 0
    suite = tiny.suite(tmp_path / "s.toml", data={"text": ["someone/stories"], "subset": "rare", "split": "validation"})
    assert panscope("train", suite, "--text", tiny.text, "--tokens", 640, "--out", "local").status == 0


@pytest.mark.parametrize(
    ("flags", "name"),
    [(("--split", "test"), "split"), (("--subset", "a"), "subset"), (("--text-revision", "v"), "revision")],
)
def test_files_have_no_splits(panscope: Command, tiny: Tiny, flags: tuple[str, str], name: str):
    call = panscope("train", "--model", tiny.model, "--text", tiny.text, *flags, *SMALL, "--out", "run")
    assert (
        f"data.{name} is {flags[1]!r}, but {str(tiny.text)!r} is not a hub dataset: files have no {name}"
        in call.sentence()
    )


def test_eval_reads_no_other_column_of_the_runs_own_text(panscope: Command, tiny: Tiny, tmp_path: Path):
    assert panscope("train", tiny.suite(tmp_path / "s.toml"), "--tokens", 640, "--out", "run").status == 0
    for flag in ("--column", "--subset", "--split", "--text-revision"):
        call = panscope("eval", "run", flag, "x")
        assert call.sentence() == f"{flag} says where in a text to read: give the text, too, by --text or --chats"


def test_the_column_of_prompts(panscope: Command, tiny: Tiny, tmp_path: Path, write_prompts: Callable[[str], Path]):
    prompts = write_prompts("question")
    common = ("rollouts", tiny.model, "--prompts", prompts, "--count", 3, "--tokens", 4)
    assert panscope(*common, "--column", "question", "--out", "a.jsonl").status == 0
    assert {json.loads(line)["prompt"] for line in Path("a.jsonl").read_text().splitlines()} <= {"w6 w7", "w8"}
    sentence = (
        "line 1 has no text in the field 'prompt' (it has 'id', 'question'); write the prompt there, or set column"
    )
    assert sentence in panscope(*common, "--out", "b.jsonl").sentence()
    model = LanguageModelConfig(path=str(tiny.model))
    with pytest.raises(UserError, match="has no text in the field 'answer'"):
        make_rollouts(model, prompts, tmp_path / "c.jsonl", column="answer", quiet=True)


@pytest.fixture
def write_prompts(tmp_path: Path) -> Callable[[str], Path]:
    """Two prompts in a field of the name given."""

    def write(field: str) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in ("w6 w7", "w8")))
        return path

    return write
