"""`panscope geometry` as a user types it: on a trained run, its flags, its table, and its mistakes."""

from pathlib import Path

import pytest

from panscope.storage.sealed import read_sealed
from tests.support.tiny_lm import Command, Tiny

NAMES = ("L00R-2x-topk-k4", "L00R-4x-topk-k4", "L01R-2x-relu-l0.1")


def kinds(run: Path) -> list[str]:
    return [entry["kind"] for entry in read_sealed(run / "geometry" / "summary.json")["analyses"]]


@pytest.fixture
def run(panscope: Command, tiny: Tiny, tmp_path: Path) -> Path:
    """A finished run: two widths at one site, one coder at another."""
    tables = (
        {"width": [32, 64], "sparsity": 4, "layers": 0},
        {"width": 32, "sparsity": 0.1, "layers": 1, "recipe": "anthropic_relu"},
    )
    assert panscope("train", tiny.suite(tmp_path / "s.toml", *tables, tokens=640), "--out", "run").status == 0
    return tmp_path / "run"


def test_help_shows_an_example(panscope: Command):
    call = panscope("geometry", "--help")
    assert (call.status, call.err) == (0, "")
    assert "panscope geometry runs/demo --against runs/other" in " ".join(call.out.split())


def test_without_flags_everything_but_tokens(panscope: Command, run: Path):
    call = panscope("geometry", run)
    assert call.status == 0, call.err
    assert kinds(run) == ["mmcs", "matching", "splitting", "neighbourhood", "neighbourhood"]
    for shown in (*NAMES, f"{NAMES[0]} > {NAMES[1]}", "MMCS", "J.-L. bound", "above all", "explained"):
        assert shown in call.out
    assert f"Geometry is in {run / 'geometry'}: 5 analyses" in call.out
    before = {path: path.read_bytes() for path in run.rglob("*.json")}
    assert panscope("eval", run).status == 0  # the folder does not disturb other commands, nor they it
    assert (run / "geometry" / "summary.json").read_bytes() == before[run / "geometry" / "summary.json"]


def test_flags_choose(panscope: Command, run: Path, tiny: Tiny, tmp_path: Path):
    assert panscope("geometry", run, "--only", "mmcs", "--coder", NAMES[2], "--tokens").status == 0
    assert kinds(run) == ["mmcs", "tokens"]
    call = panscope("geometry", run, "--coder", NAMES[0], "--latent", 3, 31, "--neighbours", 5, 0, 7, "--seed", 2)
    assert call.status == 0, call.err
    assert f"{NAMES[0]} latent 31" in call.out
    assert kinds(run) == ["mmcs", "neighbourhood", "neighbourhood", "tokens"]
    entry = read_sealed(run / "geometry" / "summary.json")["analyses"][1]
    assert (entry["numbers"]["points"], entry["seed"]) == (13, 2)

    other = tiny.suite(tmp_path / "o.toml", {"width": 32, "sparsity": 4, "layers": 0}, tokens=640, seed=5)
    assert panscope("train", other, "--out", "other[red]").status == 0
    call = panscope("geometry", run, "--against", "other[red]")
    assert call.status == 0, call.err
    assert f"{NAMES[0]} > {NAMES[0]}@other[red]" in call.out
    assert kinds(run).count("matching") == 2
    assert (run / "geometry" / "matching" / f"{NAMES[0]}--{NAMES[0]}@other-red-.parquet").is_file()


def test_mistakes_are_one_sentence_and_write_nothing(panscope: Command, run: Path, tmp_path: Path):
    one = ("--coder", NAMES[0])
    for expected, *flags in (
        ("--coder 'L09R' is not in this run: choose from L00R-2x-topk-k4, L00R-4x-", "--coder", "L09R"),
        (f"--latent 32 does not exist: coder {NAMES[0]!r} has 32 latents, so give 0 to 31", *one, "--latent", 32),
        ("--latent needs the one coder that it is of, but 3 are meant: name it by --coder", "--latent", 1),
        ("latent asks for a neighbourhood, which is not among the analyses", "--latent", 1, "--only", "mmcs"),
        ("is not a run folder", "--against", tmp_path / "nowhere"),
        ("is the run itself", "--against", run),
        ("pairs is 0: give at least 1", "--pairs", 0),
        ("neighbours are 6 -1 6: give three numbers from 0", "--neighbours", 6, -1, 6),
        ("seed is -1: give a number from 0", "--seed", -1),
        ("device 'abacus' cannot be used", "--device", "abacus"),
        ("is too small for a layout", *one, "--latent", 1, "--neighbours", 1, 1, 1),
    ):  # fmt: skip
        assert expected in panscope("geometry", run, *flags).sentence()
        assert not (run / "geometry").exists()
    assert "is not a run folder" in panscope("geometry", tmp_path / "nowhere").sentence()


def test_a_run_without_a_coder(panscope: Command, tiny: Tiny, tmp_path: Path, run: Path):
    for path in run.glob("coders/*/*"):
        path.unlink()
    assert "has no finished coder yet: continue it by `panscope train --resume" in panscope("geometry", run).sentence()
