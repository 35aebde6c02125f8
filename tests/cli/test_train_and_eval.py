"""`panscope train` and `panscope eval` as a user types them: what they make, and how flags and files go together."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from panscope import __version__ as panscope_version
from panscope import builtin
from panscope.runs import stages
from tests.support.tiny_lm import CONTEXT, Command, Tiny, write_text

COMMANDS = ("", "train", "eval")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_exits_0_and_shows_an_example(panscope: Command, command: str):
    call = panscope(*command.split(), "--help")
    assert (call.status, call.err) == (0, "")
    assert "usage: panscope" in call.out
    examples = {"train": "panscope train suite.toml", "eval": "panscope eval runs/demo --text a.jsonl", "": "train"}
    assert examples[command] in " ".join(call.out.split())


def test_the_list_of_verbs_has_one_line_each_and_help_has_defaults_and_choices(panscope: Command):
    verbs = panscope("--help").out
    assert "Draw every figure of a run's results" in verbs
    assert "panscope report runs/a runs/b" not in verbs  # the help of the verb itself has it
    assert "panscope report runs/a runs/b" in panscope("report", "--help").out
    assert "(default: 1024)" in panscope("rollouts", "--help").out
    assert "--content all|prompt|response" in panscope("eval", "--help").out


def test_a_flag_that_is_unknown_points_to_the_help_of_its_verb(panscope: Command):
    call = panscope("eval", "runs/demo", "--taxt", "a.jsonl")
    assert call.status == 2 and "run panscope eval --help" in call.err
    assert "--text FILE" in call.err and "panscope train" not in call.err
    assert "run panscope --help" in panscope("trian").err


def test_the_version(panscope: Command):
    call = panscope("--version")
    assert (call.status, call.out) == (0, f"panscope {panscope_version}\n")


def suite_of(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "suite.toml").read_text())


def evals(run: Path, name: str = "eval.json") -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob(f"coders/*/{name}"))}


def test_flags_alone_make_a_suite(panscope: Command, tiny: Tiny, tmp_path: Path):
    call = panscope(
        "train", "--model", tiny.model, "--text", tiny.text, "--sites", "resid_post", "mlp_out", "--layers", 1,
        "--architecture", "topk", "--width", 16, 32, "--sparsity", 2, 4, "--tokens", 1024, "--seed", 5,
        "--context", 20, "--packing", "stream", "--out", "mine",
    )  # fmt: skip
    assert call.status == 0, call.err
    written = suite_of(tmp_path / "mine")
    assert (written["tokens"], written["seed"], written["model"]["path"]) == (1024, 5, str(tiny.model))
    assert (written["data"]["context"], written["data"]["packing"]) == (20, "stream")
    expected = {f"L01{site}-{width}x-topk-k{k}" for site in "RM" for width in (1, 2) for k in (2, 4)}
    assert {path.name for path in (tmp_path / "mine" / "coders").iterdir()} == expected
    for name in expected:
        assert name in call.out
    assert "Results are in mine" in call.out


def test_a_flag_wins_over_the_suite_file(panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", name="short", seed=3)
    call = panscope("train", suite, "--tokens", 640, "--sparsity", 3, "--layers", 0, "--seed", 4, "--context", 10)
    assert call.status == 0, call.err
    run = tmp_path / "runs" / "short"
    written = suite_of(run)
    assert (written["tokens"], written["seed"], written["data"]["context"]) == (640, 4, 10)
    assert list(evals(run)) == ["L00R-2x-topk-k3"]
    assert written["model"]["path"] == str(tiny.model)  # as in the file


def test_a_width_flag_wins_over_an_expansion_in_the_file(panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", {"expansion": 2, "sparsity": 4, "layers": 0}, tokens=640)
    call = panscope("train", suite, "--width", 64, "--out", "run")
    assert call.status == 0, call.err
    assert list(evals(tmp_path / "run")) == ["L00R-4x-topk-k4"]


def test_runs_without_a_name_get_numbers(panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", {"width": 32, "sparsity": 4, "layers": 0}, name="a", tokens=128)
    for _ in range(3):
        assert panscope("train", suite).status == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "a-2", "a-3"]


def test_a_folder_that_is_called_like_a_built_in_suite_is_not_in_its_way(
    panscope: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "small").mkdir()
    built_in = tmp_path / "built-in"
    built_in.mkdir()
    tiny.suite(built_in / "small.toml", {"width": 32, "sparsity": 4, "layers": 0}, tokens=128)
    monkeypatch.setattr(builtin, "SUITES", built_in)
    assert panscope("train", "small", "--out", "run").status == 0


def test_the_resolved_suite_trains_the_same_coders_again(panscope: Command, tiny: Tiny, tmp_path: Path):
    suite = tiny.suite(tmp_path / "s.toml", {"recipe": "llama_scope", "expansion": 2, "sparsity": 4}, tokens=640)
    assert panscope("train", suite, "--out", "one").status == 0
    assert panscope("train", "one/suite.toml", "--out", "two").status == 0
    assert (tmp_path / "one" / "suite.toml").read_bytes() == (tmp_path / "two" / "suite.toml").read_bytes()
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").glob("coders/*/*"))
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_a_run_can_be_taken_up_from_another_folder(
    panscope: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Paths in a suite file are those of the folder the run was started in; the run folder must not forget it."""
    (tmp_path / "text.jsonl").write_bytes(tiny.text.read_bytes())
    suite = tiny.suite(tmp_path / "s.toml", data={"text": ["text.jsonl"]}, tokens=640)
    assert panscope("train", suite, "--out", "run").status == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    call = panscope("eval", "../run")
    assert call.status == 0, call.err


@pytest.fixture
def run(panscope: Command, tiny: Tiny, tmp_path: Path) -> Path:
    """A finished run of two coders whose evaluation stops at 300 tokens."""
    tables = (
        {"width": 32, "sparsity": 4, "layers": 0},
        {"width": 32, "sparsity": 0.1, "layers": 1, "recipe": "anthropic_relu"},
    )
    assert panscope("train", tiny.suite(tmp_path / "s.toml", *tables), "--out", "run").status == 0
    return tmp_path / "run"


def test_eval_gives_what_training_gave_at_its_end(panscope: Command, run: Path):
    files = [*run.glob("coders/*/eval.json"), run / "results.parquet"]
    assert len(files) == 3
    before = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    call = panscope("eval", run)
    assert call.status == 0, call.err
    assert [file.read_bytes() for file in files] == before
    assert {"L00R-2x-topk-k4", "L01R-2x-relu-l0.1"} <= set(call.out.split())


def test_eval_on_other_text_reads_all_of_it_and_nothing_else(panscope: Command, run: Path, tmp_path: Path):
    """Every document after BOS, cut at the context; neither a held-out share nor the limit of the suite.

    It is written beside the held-out numbers, which stay as they were.
    """
    held_out = evals(run)
    lengths = write_text(tmp_path / "other.jsonl", 80, seed=9)
    call = panscope("eval", run, "--text", tmp_path / "other.jsonl")
    assert call.status == 0, call.err
    expected = sum(min(length, CONTEXT - 1) for length in lengths)
    assert expected > 600
    found = evals(run, "eval-text.json")
    assert {result["tokens"] for result in found.values()} == {expected}
    assert {result["evaluated_on"]["part"] for result in found.values()} == {"all"}
    assert pyarrow.parquet.read_table(run / "results-text.parquet")["tokens"].to_pylist() == [expected] * 2
    assert evals(run) == held_out
    assert 300 <= held_out["L00R-2x-topk-k4"]["tokens"] < expected


def test_eval_on_the_same_text_twice_counts_it_twice(panscope: Command, run: Path, tmp_path: Path):
    lengths = write_text(tmp_path / "a.jsonl", 20, seed=1)
    text = tmp_path / "a.jsonl"
    assert panscope("eval", run, "--text", text, text).status == 0
    assert evals(run, "eval-text.json")["L00R-2x-topk-k4"]["tokens"] == 2 * sum(
        min(length, CONTEXT - 1) for length in lengths
    )


def test_eval_needs_a_finished_coder(panscope: Command, tiny: Tiny, tmp_path: Path, run: Path):
    for config in run.glob("coders/*/config.json"):
        config.unlink()
    assert "L00R-2x-topk-k4' has no config.json" in panscope("eval", run).sentence()
    for coder in run.glob("coders/*"):
        shutil.rmtree(coder)
    assert "has no finished coder yet" in panscope("eval", run).sentence()


def test_a_text_for_eval_that_is_not_there(panscope: Command, run: Path):
    before = evals(run)
    assert "data.text: 'gone.txt' is not a file" in panscope("eval", run, "--text", "gone.txt").sentence()
    assert evals(run) == before


def test_a_folder_with_brackets_in_its_name_is_shown_as_it_is(panscope: Command, tiny: Tiny, tmp_path: Path):
    """Square brackets mean colours to the terminal library; in a path they mean themselves."""
    suite = tiny.suite(tmp_path / "s.toml", {"width": 32, "sparsity": 4, "layers": 0}, tokens=128)
    for name in ("run[red]", "run[", "run[-red]x"):
        call = panscope("train", suite, "--out", name)
        assert call.status == 0, call.err
        assert f"Results are in {name}\n" in call.out


def test_where_the_results_are_is_one_line(
    panscope: Command, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a narrow terminal too: it is there to be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    folder = "a-folder-with-a-long-name/" * 4 + "run"
    suite = tiny.suite(tmp_path / "s.toml", {"width": 32, "sparsity": 4, "layers": 0}, tokens=128)
    call = panscope("train", suite, "--out", folder)
    assert call.status == 0, call.err
    assert f"Results are in {folder}\n" in call.out


def test_an_l0_given_as_a_penalty_is_said_before_and_after(panscope: Command, tiny: Tiny):
    flags = ("--model", tiny.model, "--text", tiny.text, "--sites", "resid_post", "--layers", 1, "--width", 32)
    call = panscope("train", *flags, "--architecture", "jumprelu", "--sparsity", 32, "--tokens", 25_600)
    assert call.status == 0, call.err
    before, after = call.out.split("measuring the size of the activations")
    assert "for an L0 of 32 write --target-l0 32" in before
    assert "an L0 of about 0, which reconstructs little but the mean: L01R-2x-jumprelu-l32" in after


def test_text_that_is_missing_is_said_before_anything_else(panscope: Command, tiny: Tiny):
    call = panscope("train", "--model", tiny.model, "--text", "none.jsonl", "--width", 32, "--sparsity", 4)
    assert "none.jsonl" in call.sentence() and call.out == ""


def test_the_fields_that_people_change_most_are_flags(panscope: Command, tiny: Tiny, tmp_path: Path):
    common = ("--model", tiny.model, "--text", tiny.text, "--layers", 0, "--sites", "mlp_out", "--tokens", 256)
    flags = ("--architecture", "topk", "batchtopk", "--expansion", 2, "--sparsity", 4, "--batch", 64, "--lr", 0.003)
    call = panscope("train", *common, *flags, "--lr-warmup-steps", 2, "--context", CONTEXT, "--out", "run")
    assert call.status == 0, call.err
    suite = tomllib.loads((tmp_path / "run" / "suite.toml").read_text())
    assert suite["train"]["batch"] == 64
    assert len(list((tmp_path / "run" / "coders").iterdir())) == 2
    first = json.loads(next((tmp_path / "run" / "coders").glob("*/config.json")).read_text())
    assert first["schedule"]["learning_rate"] == 0.003 and first["schedule"]["lr_warmup_steps"] == 2
    assert first["coder"]["width"] == 2 * 16


def test_one_sparsity_for_architectures_that_read_it_differently(panscope: Command, tiny: Tiny):
    flags = ("--width", 32, "--sparsity", 4, "--architecture", "topk", "jumprelu")
    call = panscope("train", "--model", tiny.model, "--text", tiny.text, *flags)
    assert call.status == 2 and "a penalty's coefficient for jumprelu: write a suite file" in call.err


def test_stopping_at_once_names_the_run(panscope: Command, tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "start", interrupted)
    call = panscope("train", "--out", "mine")
    assert call.status == 130 and "To continue: panscope train --resume mine" in call.err
