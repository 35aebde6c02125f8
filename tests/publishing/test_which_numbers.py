"""Which evaluation of a run is published, and what the card says of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panscope.publishing.compose import compose
from panscope.publishing.figures import card_figures
from panscope.publishing.provenance import load_for_export
from panscope.reporting.runs import read_runs
from panscope.runs.finished_coder import HELD_OUT
from panscope.runs.run import Run
from panscope.storage.sealed import read_sealed, write_sealed
from panscope.types import UserError
from tests.support.made_run import NOT_MEASURED, write_made_run

CODER = "L00R-2x-topk-k4"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.open(write_made_run(tmp_path / "run", tmp_path / "alice"))


def measure(run: Run, label: str, fvu: float, **on: Any) -> None:
    """Another evaluation of every coder, as that on held-out text was but for what is said."""
    for name in run.coder_names():
        if name != NOT_MEASURED:
            fields = read_sealed(run.coder_folder(name) / "eval.json")
            fields.pop("files")
            fields |= {"fvu": fvu, "l0": 100 * fvu}
            fields["evaluated_on"] |= {"label": label, "part": "all", "text": [f"{label}.jsonl"]} | on
            write_sealed(run.coder_folder(name) / f"eval-{label}.json", fields)


def forget_held_out(run: Run) -> None:
    for name in run.coder_names():
        (run.coder_folder(name) / "eval.json").unlink(missing_ok=True)


@pytest.fixture
def card(run: Run, tmp_path: Path) -> Callable[..., str]:
    """The card as it is published with an evaluation that is asked for."""

    def written(asked: str | None = None) -> str:
        out, label = tmp_path / "out", run.chosen_label(asked)
        out.mkdir()
        figures = card_figures(read_runs([run.path]), label)
        compose(run, out, repository="me/coders", licence="mit", label=label, figures=figures)
        return (out / "README.md").read_text(encoding="utf-8")

    return written


def published(tmp_path: Path, file: str) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / CODER / file).read_text())


def test_held_out_text_comes_first(run: Run, card: Callable[..., str], tmp_path: Path):
    measure(run, "books", 0.25)
    assert "of text kept from training (`stories.jsonl`)" in card()
    assert published(tmp_path, "eval.json")["evaluated_on"]["label"] == HELD_OUT


def test_the_only_other_one_is_taken(run: Run, card: Callable[..., str], tmp_path: Path):
    measure(run, "books", 0.25)
    forget_held_out(run)
    text = card()
    assert "On 1,234 tokens of text (`books.jsonl`), sequences of at most 64 tokens; ±" in text
    assert text.count("| 25.0 | 0.2500") == 8 and "![" in text
    assert published(tmp_path, "eval.json")["evaluated_on"]["label"] == "books"
    assert published(tmp_path, "cfg.json")["metadata"]["l0"] == 25.0


def test_of_several_one_must_be_named(run: Run, card: Callable[..., str], tmp_path: Path):
    measure(run, "books", 0.25)
    measure(run, "code", 0.5)
    forget_held_out(run)
    with pytest.raises(UserError, match=r"name one of books, code by --eval$"):
        card()
    text = card("code")
    assert "(`code.jsonl`)" in text and text.count("| 50.0 | 0.5000") == 8
    assert published(tmp_path, "eval.json")["fvu"] == 0.5
    assert published(tmp_path, "cfg.json")["metadata"]["l0"] == 50.0
    assert "l0" not in load_for_export(run.coder(CODER)).about, "who exports names none"


def test_another_one_may_be_named(run: Run, card: Callable[..., str], tmp_path: Path):
    measure(run, "books", 0.25)
    assert "(`books.jsonl`)" in card("books")
    assert published(tmp_path, "eval.json")["fvu"] == 0.25


def test_one_that_is_not_there(run: Run, card: Callable[..., str]):
    measure(run, "books", 0.25)
    with pytest.raises(UserError, match=r"eval is 'book', .* has no such evaluation: it has held_out, books$"):
        card("book")


def test_numbers_of_two_texts_are_in_no_table(run: Run, card: Callable[..., str]):
    """As an evaluation leaves them that was killed while it wrote over one of the same label."""
    measure(run, "books", 0.25)
    file = run.coder_folder(CODER) / "eval-books.json"
    fields = read_sealed(file)
    fields["evaluated_on"]["text"] = ["other.jsonl"]
    write_sealed(file, fields)
    with pytest.raises(UserError, match=rf"the evaluations 'books' of .* and '{CODER}' are not of one text"):
        card("books")


def test_what_was_otherwise_is_said(run: Run, card: Callable[..., str]):
    measure(run, "tuned", 0.25, model="org/tuned", as_trained=True, coder_dtype="bfloat16", splice="all")
    text = card("tuned")
    for words in (
        "in the model `org/tuned`",
        "as they were trained",
        "computed in bfloat16",
        "special tokens replaced",
    ):
        assert words in text, words
