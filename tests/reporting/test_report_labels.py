"""Which evaluation a report draws: of imported runs, of several runs, of the one that is named."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from panscope.reporting.figure import Figure
from panscope.reporting.figures import FIGURES
from panscope.reporting.label import drawing
from panscope.reporting.page import page
from panscope.reporting.runs import read_runs
from panscope.reporting.table import table_rows
from panscope.runs.finished_coder import HELD_OUT
from panscope.storage.sealed import read_sealed, read_sealed_toml, write_sealed, write_sealed_toml
from panscope.types import UserError
from tests.support.fake_run import Fake, write_run

_FAKE = Fake(
    layers=1,
    kinds=("resid_post",),
    widths=(64, 128),
    sparsities=(8, 16),
    architectures=("topk",),
    labels=("text", "long"),
    multilayer=False,
    transcoder=False,
    geometry=False,
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the evaluations held_out, text and long; nobody changes it."""
    return write_run(tmp_path_factory.mktemp("labels") / "full", _FAKE)


def without(full: Path, out: Path, *labels: str) -> Path:
    """A copy of it that was never measured under these labels, as an imported run."""
    shutil.copytree(full, out)
    for label in labels:
        suffix = "" if label == HELD_OUT else f"-{label}"
        for file in out.glob(f"coders/*/eval{suffix}.json"):
            file.unlink()
    suite = read_sealed_toml(out / "suite.toml")
    write_sealed_toml(out / "suite.toml", suite | {"coders": []})
    return out


def drawn(*runs: Path, asked: str | None = None) -> str:
    return drawing(read_runs(runs), asked).label


def test_a_run_with_one_other_evaluation_is_drawn_of_that(full: Path, tmp_path: Path):
    """Every number and every figure that one evaluation has, and the page says which it is and of which text."""
    run = without(full, tmp_path / "back", HELD_OUT, "long")
    results = drawing(read_runs([run]))
    assert results.label == "text"
    assert all(row["fvu"] is not None for row in table_rows(results))
    figures = {plot.key: plot.draw(results) for plot in FIGURES}
    for key in ("trade-off-fvu", "by-layer", "ablations", "frequency", "dead-and-dense", "position-delta-loss"):
        assert isinstance(figures[key], Figure), key
    text = page(results, [(plot, figures[plot.key]) for plot in FIGURES])
    assert "The numbers are those of the evaluation text, on stories.jsonl." in text
    assert "text: stories.jsonl (16,000 tokens)" in text
    assert "<dt>training text</dt><dd>unknown</dd>" in text and "<dt>trained on</dt><dd>imported</dd>" in text


def test_held_out_text_is_drawn_where_every_run_has_it(full: Path, tmp_path: Path):
    assert drawn(full) == HELD_OUT
    assert drawn(full, without(full, tmp_path / "other", "text")) == HELD_OUT
    assert drawn(full, asked="long") == "long"


def test_a_run_that_was_never_measured_is_drawn_beside_others(full: Path, tmp_path: Path):
    run = without(full, tmp_path / "back", HELD_OUT, "text", "long")
    assert drawn(run) == HELD_OUT
    assert drawn(full, run) == HELD_OUT
    results = drawing(read_runs([run]))
    assert f"`panscope eval {run} --text FILE`" in getattr(FIGURES[0].draw(results), "reason", "")


def test_several_runs_are_drawn_of_the_label_that_all_have(full: Path, tmp_path: Path):
    assert drawn(full, without(full, tmp_path / "back", HELD_OUT, "long")) == "text"


def test_what_is_not_clear_must_be_said(full: Path, tmp_path: Path):
    two, one = without(full, tmp_path / "two", HELD_OUT), without(full, tmp_path / "one", HELD_OUT, "text")
    with pytest.raises(UserError, match=r"run 'two' has several evaluations.* choose one with --eval: long, te"):
        drawn(two)
    assert drawn(two, asked="long") == "long"
    with pytest.raises(UserError, match="each of these runs has several evaluations and none on held-out text"):
        drawn(full, two)
    with pytest.raises(UserError, match="eval is 'text', but the run 'one' has no such evaluation: it has long"):
        drawn(full, one, asked="text")
    three = without(full, tmp_path / "three", HELD_OUT, "long")
    with pytest.raises(
        UserError, match=r"no evaluation label in common \(one has long; three has text\): evaluate each on"
    ):
        drawn(one, three)


def test_runs_that_were_measured_on_different_texts_are_not_compared(full: Path, tmp_path: Path):
    """Their held-out texts are each one's own, and were always drawn beside each other."""
    run = without(full, tmp_path / "back", "long")
    for file in run.glob("coders/*/eval*.json"):
        content = read_sealed(file)
        content["evaluated_on"]["text"] = ["elsewhere/books.jsonl"]
        write_sealed(file, content)
    assert drawn(full, run) == HELD_OUT
    words = "is of text stories.jsonl in the run 'full' and of text books.jsonl in 'back', which cannot be compared"
    with pytest.raises(UserError, match=words):
        drawn(full, run, asked="text")


@pytest.mark.parametrize(
    ("key", "other"),
    [("text_identity", ["stories.jsonl 3 bytes xxh3 0"]), ("context", 64), ("splice", "all"), ("as_trained", True)],
)
def test_nor_those_of_other_files_of_one_name_or_measured_otherwise(full: Path, tmp_path: Path, key: str, other: Any):
    run = without(full, tmp_path / "back", "long")
    for file in run.glob("coders/*/eval*.json"):
        content = read_sealed(file)
        content["evaluated_on"] |= {key: other, "model": "another/model"}
        write_sealed(file, content)
    with pytest.raises(UserError, match=rf"is of {key} .* in the run 'full' and of {key} .* in 'back', which"):
        drawn(full, run, asked="text")
