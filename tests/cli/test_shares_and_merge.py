"""`panscope train --share` trains a part of a suite as the whole would be, and `panscope merge` joins the parts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from panscope.runs import merging
from panscope.storage.json_lines import JsonLines
from tests.support.tiny_lm import Command, Tiny

TABLES: list[dict[str, Any]] = [
    {"sites": ["resid_post", "mlp_out"], "layers": "all", "width": 32, "sparsity": 4},
    {"wiring": "transcoder", "layers": 1, "width": 32, "sparsity": 4},
    {"layers": 0, "width": 24, "sparsity": 0.05, "recipe": "gemma_scope"},
]


@pytest.fixture
def suite(tiny: Tiny, tmp_path: Path) -> Path:
    return tiny.suite(tmp_path / "suite.toml", *TABLES)


@pytest.fixture
def shares(panscope: Command, suite: Path, tmp_path: Path) -> list[Path]:
    for share in ("1/3", "2/3", "3/3"):
        done = panscope("train", suite, "--share", share)
        assert done.status == 0, done.err
    return [tmp_path / "runs" / f"suite-share-{number}-of-3" for number in (1, 2, 3)]


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob("coders/*/*") if path.is_file()}


def test_the_merged_run_is_the_whole_run(panscope: Command, suite: Path, shares: list[Path], tmp_path: Path):
    """Every file of every coder, byte for byte, the table, and every logged figure but speed."""
    assert panscope("train", suite, "--out", "whole").status == 0
    merged = panscope("merge", *shares, "--out", "merged")
    assert merged.status == 0, merged.err
    whole, joined = tmp_path / "whole", tmp_path / "merged"
    assert files(joined) == files(whole)
    tables = [pyarrow.parquet.read_table(run / "results.parquet").to_pylist() for run in (whole, joined)]
    assert sorted(tables[1], key=str) == sorted(tables[0], key=str)
    assert (joined / "suite.toml").read_bytes() == (whole / "suite.toml").read_bytes()
    logs = []
    for run in (whole, joined):
        lines = JsonLines(run / "train.jsonl").read()
        for line in lines:
            del line["rows_per_second"]
        logs.append(lines)
    assert logs[1] == sorted(logs[0], key=lambda line: (line["step"], line["coder"]))
    assert panscope("merge", *reversed(shares), "--out", "reversed").status == 0
    assert (tmp_path / "reversed" / "train.jsonl").read_bytes() == (joined / "train.jsonl").read_bytes()


@pytest.mark.soak
def test_a_merged_run_is_a_run(panscope: Command, shares: list[Path], tmp_path: Path):
    assert panscope("merge", *shares, "--out", "merged").status == 0
    before = files(shares[0])
    for arguments in (
        ["eval", "merged"],
        ["report", "merged"],
        ["geometry", "merged"],
        ["train", "--resume", "merged"],
    ):
        done = panscope(*arguments)
        assert done.status == 0, done.err
    assert files(shares[0]) == before, "an evaluation of the merged run changed the runs it is made of"
    assert panscope("export", "merged", "--format", "saelens", "--out", "exported").status == 0
    assert "share" not in (tmp_path / "merged" / "suite.toml").read_text().replace("shared", "")


@pytest.mark.soak
def test_a_share_is_resumed_as_it_was(panscope: Command, shares: list[Path]):
    run = shares[1]
    before = files(run)
    shutil.rmtree(run / "coders")
    shutil.rmtree(run / "checkpoint" / "step_00000040")
    (run / "status.json").unlink()
    assert panscope("train", "--resume", run).status == 0
    assert files(run) == before


def test_what_cannot_be_merged(panscope: Command, suite: Path, shares: list[Path], tiny: Tiny, tmp_path: Path):
    def refused(*arguments: object) -> str:
        said = panscope("merge", *arguments, "--out", "merged").sentence()
        assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))
        return said

    assert "needs at least two runs" in refused(shares[0])
    assert "the shares 2/3 are missing" in refused(shares[0], shares[2])
    assert "is given 2 times: name each run once" in refused(*shares, shares[0])
    shutil.copytree(shares[0], tmp_path / "copied")
    assert "is in 2 of the runs" in refused(*shares, tmp_path / "copied")
    status = json.loads((shares[2] / "status.json").read_text())
    (shares[2] / "status.json").unlink()
    assert "is not finished (its stage is unknown)" in refused(*shares)
    (shares[2] / "status.json").write_text(json.dumps(status))
    other = tiny.suite(tmp_path / "other.toml", *TABLES, seed=1)
    assert panscope("train", other, "--share", "3/3", "--out", "other").status == 0
    assert "seed is 0 in" in refused(*shares[:2], tmp_path / "other")
    assert panscope("train", suite, "--share", "2/2", "--out", "half").status == 0
    assert "of different divisions" in refused(*shares, tmp_path / "half")
    assert "--out is missing" in panscope("merge", *shares).sentence()
    assert "needs one: cut it into 6 at most" in panscope("train", suite, "--share", "1/7").sentence()


def test_a_run_that_lost_something_is_not_merged(panscope: Command, shares: list[Path], tmp_path: Path):
    """Runs may be deleted after a merge, so all of each file is compared with its checksum before it."""

    def refused() -> str:
        said = panscope("merge", *shares, "--out", "merged").sentence()
        assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))
        return said

    coder = next((shares[1] / "coders").iterdir())
    for file in ("weights.safetensors", "training.safetensors", "latents.parquet", "positions.parquet"):
        good = (coder / file).read_bytes()
        (coder / file).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert f"{file}' is damaged: it does not match its checksum" in refused()
        (coder / file).unlink()
        assert f"{file}' is missing" in refused()
        (coder / file).write_bytes(good)
    log = (shares[1] / "train.jsonl").read_bytes()
    (shares[1] / "train.jsonl").write_bytes(log.replace(b'"loss"', b'"lost"', 1))
    assert "train.jsonl' is damaged" in refused()
    (shares[1] / "train.jsonl").write_bytes(log)
    shutil.rmtree(coder)
    assert "the runs have 5 coders, and their suite.toml says 6" in refused()


def test_a_merge_that_is_stopped_leaves_no_run(
    panscope: Command, monkeypatch: pytest.MonkeyPatch, shares: list[Path], tmp_path: Path
):
    """It is stopped when all but the tables is there; the same command then makes all of the run."""

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(merging, "write_table", stopped)
        assert panscope("merge", *shares, "--out", "merged").status == 130
    assert (tmp_path / ".merged.tmp" / "coders").is_dir() and not (tmp_path / "merged").exists()
    assert panscope("merge", *shares, "--out", "merged").status == 0
    assert len(files(tmp_path / "merged")) == sum(len(files(share)) for share in shares)
    assert not (tmp_path / ".merged.tmp").exists()


def test_shares_of_machines_that_keep_model_and_text_elsewhere(panscope: Command, tiny: Tiny, tmp_path: Path):
    """The merged run can be published: its evaluations are of one model and text, wherever these were."""
    for number in (1, 2):
        machine = tmp_path / f"machine{number}"
        shutil.copytree(tiny.model, machine / "lm")
        shutil.copy(tiny.text, machine / "text.jsonl")
        suite = Tiny(machine / "lm", machine / "lm", machine / "text.jsonl").suite(machine / "suite.toml", *TABLES)
        assert panscope("train", suite, "--share", f"{number}/2", "--out", f"run{number}").status == 0
    assert panscope("merge", "run1", "run2", "--out", "merged").status == 0
    flags = ("--to", "a/b", "--licence", "mit", "--dry-run", "look")
    done = panscope("publish", "merged", *flags)
    assert done.status == 0, done.err


def test_an_undefined_number_is_the_same_in_the_merged_table(panscope: Command, tiny: Tiny, tmp_path: Path):
    """A coder one of whose numbers is NaN: it divides by the latents that fire, and none does."""
    silent = {"layers": 1, "width": 24, "sparsity": 0.05, "recipe": "gemma_scope", "threshold_init": 1e6}
    suite = tiny.suite(tmp_path / "suite.toml", {"layers": 0, "width": 32, "sparsity": 4}, silent)
    for flags in (("--out", "whole"), ("--share", "1/2", "--out", "run1"), ("--share", "2/2", "--out", "run2")):
        assert panscope("train", suite, *flags).status == 0
    assert panscope("merge", "run1", "run2", "--out", "merged").status == 0
    whole, merged = (tmp_path / name / "results.parquet" for name in ("whole", "merged"))
    rows = pyarrow.parquet.read_table(whole).to_pylist()
    assert any(value != value for row in rows for value in row.values()), "some number must be NaN"
    assert merged.read_bytes() == whole.read_bytes()


@pytest.mark.soak
def test_runs_of_some_coders_each_are_merged_too(panscope: Command, suite: Path, tmp_path: Path):
    for kind in ("resid_post", "mlp_out"):
        assert panscope("train", suite, "--sites", kind, "--out", kind).status == 0
    assert panscope("merge", "resid_post", "mlp_out", "--out", "both").status == 0
    assert len(list((tmp_path / "both" / "coders").iterdir())) == 5
    assert panscope("eval", "both").status == 0


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--sites", "mlp_out"], ["L00M-2x-topk-k4", "L01M-2x-topk-k4"]),
        (["--wiring", "transcoder"], ["L01TC-2x-topk-k4"]),
        (["--sites", "mlp_in_no_gain -> mlp_out"], ["L01TC-2x-topk-k4"]),
        (["--widths", "24"], ["L00R-1.5x-jumprelu-l0.05"]),
        (["--layers", "0", "--sites", "resid_post"], ["L00R-1.5x-jumprelu-l0.05", "L00R-2x-topk-k4"]),
    ],
)
def test_flags_choose_among_the_coders_of_a_suite(panscope: Command, suite: Path, flags: list[str], kept: list[str]):
    """Coders of other wirings are left out, and none is changed."""
    done = panscope("plan", suite, *flags, "--coders")
    assert done.status == 0, done.err
    every = [word for line in done.out.splitlines() for word in line.split() if word.startswith("L0") and "x-" in word]
    every = [name.removesuffix("'s") for name in every]
    assert sorted(dict.fromkeys(every)) == kept


def test_a_selection_that_leaves_nothing_says_what_there_is(panscope: Command, suite: Path):
    said = panscope("train", suite, "--sites", "attn_z").sentence()
    assert "sites attn_z: no coder of suite has that; there is" in said and "mlp_in_no_gain -> mlp_out" in said
    said = panscope("train", suite, "--sites", "mlp_out", "--widths", "24").sentence()
    assert "no coder of suite matches that and the rest of the selection" in said
