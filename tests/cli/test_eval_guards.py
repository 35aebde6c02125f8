"""What keeps `panscope eval` from wrong numbers: other questions, other weights, other labels, numbers that are not."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from panscope.evals.spec import EvalShard
from panscope.events import Reporter
from panscope.lms.load import load
from panscope.runs.eval_request import EvalRequest
from panscope.runs.evaluation import check_precision, evaluate_run
from panscope.runs.run import Run
from panscope.storage.atomic import checksum
from panscope.storage.sealed import read_sealed, write_sealed
from panscope.storage.tensors import read_tensors, write_tensors
from panscope.types import UserError
from tests.support.hearing import At
from tests.support.tiny_lm import Command, Tiny

CODER = "L00R-2x-topk-k4"


@pytest.fixture
def run(panscope: Command, tiny: Tiny, tmp_path: Path) -> Path:
    """A finished run of one coder, evaluated in several batches."""
    data = {"text": [str(tiny.text)], "held_out": 0.2, "sequences": 4}
    table = {"width": 32, "sparsity": 4, "layers": 0}
    suite = tiny.suite(tmp_path / "s.toml", table, data=data, eval={"tokens": 600, "probes": 10})
    assert panscope("train", suite, "--out", "run").status == 0
    return tmp_path / "run"


class Killed(BaseException):
    """What a kill is to a test in the same process."""


def killed() -> None:
    raise Killed


def evaluated(run: Path, request: EvalRequest, reporter: Reporter | None = None) -> dict[str, Any]:
    folder = Run.open(run)
    suite = folder.suite
    results = evaluate_run(folder, suite, load(suite.model), reporter or Reporter(), request)
    assert results is not None
    return results[CODER]


def test_sums_without_saebench_are_not_gone_on_with_for_saebench(run: Path):
    """Both replace every token, under one label; but what they judge and sum differs."""
    expected = evaluated(run, EvalRequest(label="x", saebench=True))
    with pytest.raises(Killed):
        evaluated(run, EvalRequest(label="x", splice="all", save_seconds=0), At("evaluating", 400, killed, beyond=True))
    assert (run / "evaluation" / "x" / "part-1-of-1" / "progress.json").exists()
    found = evaluated(run, EvalRequest(label="x", saebench=True))
    assert found == expected


def test_the_mean_that_is_spliced_in_is_not_rounded_to_the_coders_precision(run: Path):
    """What a site is worth to the model has nothing to do with any coder."""
    fields = ("ce_clean", "ce_zero_ablated", "ce_mean_ablated", "kl_zero_ablated")
    wide = evaluated(run, EvalRequest(label="x"))
    narrow = evaluated(run, EvalRequest(label="x", coder_dtype="bfloat16"))
    assert [narrow[field] for field in fields] == [wide[field] for field in fields]
    assert narrow["ce_spliced"] != wide["ce_spliced"]


@pytest.mark.parametrize(
    "flags",
    [
        ("--label", "held_out", "--text", "a.jsonl"),
        ("--label", "held_out", "--as-trained"),
        ("--label", "held_out", "--coder-dtype", "bfloat16"),
        ("--label", "held_out", "--splice", "all"),
        ("--label", "held_out", "--context", "8"),
    ],
)
def test_the_held_out_numbers_are_never_written_over(panscope: Command, run: Path, flags: tuple[str, ...]):
    before = (run / "coders" / CODER / "eval.json").read_bytes()
    said = panscope("eval", run, *flags).sentence()
    assert "label is 'held_out'" in said and "give it another label" in said
    assert (run / "coders" / CODER / "eval.json").read_bytes() == before


def test_held_out_text_as_chats_has_a_label_of_its_own(panscope: Command, run: Path):
    before = (run / "coders" / CODER / "eval.json").read_bytes()
    assert panscope("eval", run, "--chat-user", "w3 ", "--chat-model", " w5", "--tokens", "100").status == 0
    assert (run / "coders" / CODER / "eval.json").read_bytes() == before
    assert (run / "coders" / CODER / "eval-chat.json").is_file()


def test_counts_below_one_and_precisions_that_are_none(panscope: Command, run: Path):
    assert "tokens is 0" in panscope("eval", run, "--tokens", "0").sentence()
    assert "tokens is -5" in panscope("eval", run, "--tokens", "-5").sentence()
    for precision in ("0", "-1", "nan"):
        assert f"precision is {float(precision):g}" in panscope("eval", run, "--precision", precision).sentence()


@pytest.mark.parametrize("ends", [[math.nan, math.nan], [-math.inf, math.inf]])
def test_a_precision_asked_of_an_undefined_number(ends: list[float]):
    results: Mapping[str, Any] = {"a": {"tokens": 10, "intervals": {"fvu": ends, "delta_loss": [0.0, 1.0]}}}
    with pytest.raises(UserError, match="fvu of coder 'a' is undefined on this text"):
        check_precision(dict(results), 0.01)


def test_numbers_of_weights_that_are_there_no_more_are_a_sentence(panscope: Command, run: Path):
    """As after a coder was trained again in its place."""
    folder = run / "coders" / CODER
    assert read_sealed(folder / "eval.json")["weights"] == read_sealed(folder / "config.json")["xxh3"]
    weights = read_tensors(folder / "weights.safetensors")
    write_tensors(folder / "weights.safetensors", weights | {"b_dec": weights["b_dec"] + 1})
    config = read_sealed(folder / "config.json")
    config["xxh3"]["weights.safetensors"] = checksum(folder / "weights.safetensors")
    write_sealed(folder / "config.json", config)
    for verb in (("report", run), ("train", "--resume", run)):
        said = panscope(*verb).sentence()
        assert "is of other weights than the coder has now; measure again by `panscope eval" in said
    assert panscope("eval", run).status == 0
    assert panscope("report", run).status == 0


def test_what_a_killed_process_had_begun_to_write_is_removed(panscope: Command, run: Path):
    left = [run / "coders" / CODER / ".latents.parquet.1.tmp", run / ".results.parquet.1.tmp"]
    for path in left:
        path.write_bytes(b"half")
    assert panscope("eval", run).status == 0
    assert [path for path in left if path.exists()] == []


def test_a_part_that_is_being_saved_by_another_process_is_not_taken_for_damaged(run: Path):
    """Between reading progress.json and the sums it names, the other process may have replaced them."""
    with pytest.raises(Killed):
        evaluated(
            run,
            EvalRequest(label="x", share=EvalShard(1, 2), save_seconds=0),
            At("evaluating", 400, killed, beyond=True),
        )
    (sums,) = (run / "evaluation" / "x" / "part-2-of-2").glob("*.safetensors")
    sums.unlink()
    folder = Run.open(run)
    suite = folder.suite
    assert (
        evaluate_run(folder, suite, load(suite.model), Reporter(), EvalRequest(label="x", share=EvalShard(0, 2)))
        is None
    )
