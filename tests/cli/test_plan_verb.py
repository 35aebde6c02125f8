"""`panscope plan`: the coders, their cost, no weights and no network, and one sentence for every mistake."""

import re
import shutil
from pathlib import Path

import pytest

from panscope import builtin
from tests.support.tiny_lm import Command, Tiny

JUMP = '[[coders]]\nrecipe = "gemma_scope"\nsparsity = [3e-4, 6e-4]\n'


pytestmark = pytest.mark.usefixtures("no_network")


def line(text: str, start: str) -> str:
    """The one line that begins so, its spaces reduced."""
    lines = [" ".join(found.split()) for found in text.splitlines()]
    (found,) = [found for found in lines if found.startswith(start)]
    return found


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """Two cells of Gemma Scope's table on 9B."""
    file = tmp_path / "gemma.toml"
    file.write_text(
        'name = "two-cells"\ntokens = 8_000_000_000\n[model]\npath = "google/gemma-2-9b"\n[train]\nbatch = 4096\n'
        f'{JUMP}sites = ["resid_post"]\nlayers = [20]\nwidth = 131_072\n'
        f'{JUMP}sites = ["attn_z", "mlp_out"]\nlayers = [0, 1, 2, 9]\nwidth = 16_384\ntokens = 4_000_000_000\n'
    )
    return file


def test_the_cells_of_a_table(panscope: Command, gemma: Path):
    out = panscope("plan", gemma, "--gpus", 8).out
    assert line(out, "resid_post ") == "resid_post 20 131,072 jumprelu lambda 3e-4 6e-4 8B 2"
    assert line(out, "attn_z ") == "attn_z 0-2, 9 16,384 jumprelu lambda 3e-4 6e-4 4B 8"
    assert line(out, "mlp_out ") == "mlp_out 0-2, 9 16,384 jumprelu lambda 3e-4 6e-4 4B 8"
    assert line(out, "total 18") == "total 18"
    assert "two-cells on google/gemma-2-9b (42 layers, 9.24B parameters): 1,953,125 steps of 4,096 rows" in out


def test_what_it_costs(panscope: Command, gemma: Path):
    """Two coders 131,072 wide and sixteen 16,384; one site of 8B tokens in 32 bits is Gemma Scope's 100 TiB."""
    out = panscope("plan", gemma, "--gpus", 8, "--gpu", "A100-80").out
    dense = 12 * (2 * 3584 * 131_072 * 8e9 + 8 * (4096 + 3584) * 16_384 * 4e9)
    assert line(out, "coders, dense (").split()[4] == f"{dense:.3g}"
    assert "to 104 TiB (L20.resid_post)" in line(out, "a site")
    parameters = 2 * 2 * 3584 * 131_072 + 8 * 2 * (4096 + 3584) * 16_384
    assert line(out, "coders 3").startswith(f"coders {parameters / 1e9:.3g}B parameters, ")
    assert "34.4 GiB in float32" in line(out, "language model 34")
    assert "18 coders unsharded; the fullest device holds" in line(out, "fewest")
    assert "rows in 1 shards, latents in 8" in line(out, "L20R-36.57x-jumprelu-l3e-4 rows")
    assert "assumed" in out
    assert "L0 100 where only a penalty coefficient is given" in out


def test_every_coder_by_name(panscope: Command, gemma: Path):
    out = panscope("plan", gemma, "--coders").out
    names = [text.split()[0] for text in out.splitlines() if text.startswith("L")]
    assert len(names) == 18
    assert names[0] == "L20R-36.57x-jumprelu-l3e-4"
    assert "L09Z-4x-jumprelu-l6e-4 attn_z 9 16,384 jumprelu lambda 6e-4 4B" in " ".join(out.split())


def test_keeping_longer_needs_more_readings(panscope: Command, gemma: Path):
    few, many = (
        int(line(panscope("plan", gemma, "--days", days).out, "whole suite").split()[-3].replace(",", ""))
        for days in (10, 1000)
    )
    assert many >= 50 * few


@pytest.mark.parametrize("name", sorted(path.stem for path in builtin.SUITES.glob("*.toml")))
def test_every_built_in_suite_can_be_planned(panscope: Command, name: str):
    done = panscope("plan", name, "--gpus", 8)
    assert done.status == 0
    assert line(done.out, "total, dense")


def test_a_model_without_its_weights(panscope: Command, tiny: Tiny, tmp_path: Path):
    shutil.copytree(tiny.model, tmp_path / "lm", ignore=shutil.ignore_patterns("*.safetensors"))
    suite = tiny.suite(tmp_path / "s.toml", model={"path": str(tmp_path / "lm")})
    out = panscope("plan", suite).out
    assert line(out, "resid_post ") == "resid_post 0-1 32 topk K 4 2.56K 2"
    assert "a coder" not in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("demo", "--gpu", "Z80"), "gpu 'Z80' is unknown: use one of A100-40GB, A100-80GB, H100-SXM"),
        (("demo", "--gpu", "A100"), "gpu 'A100' is ambiguous"),
        (("demo", "--gpus", "0"), "gpus is 0: give how many there are"),
        (("demo", "--days", "0"), "--days is 0: give a number of days above 0"),
        (("demo", "--days", "nan"), "--days is nan"),
        (("demon",), "suite 'demon' is neither a file nor a built-in suite"),
        (("gone.toml",), "'gone.toml' does not exist"),
    ],
)
def test_mistakes(panscope: Command, arguments: tuple[str, ...], expected: str):
    assert expected in panscope("plan", *arguments).sentence()


def test_a_layer_the_model_lacks_is_refused_without_loading_it(panscope: Command, gemma: Path):
    gemma.write_text(gemma.read_text().replace("[20]", "[42]"))
    assert "layer 42 does not exist: the model has 42 layers" in panscope("plan", gemma).sentence()


@pytest.mark.parametrize("flags", [(), ("--coders",)])
@pytest.mark.parametrize("columns", [60, 80])
def test_no_word_is_cut_in_two(
    panscope: Command, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], columns: int
):
    whole = panscope("plan", "demo", *flags).out
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = panscope("plan", "demo", *flags).out
    tables = (out[out.index("\n\n") : out.index("demo on panscope://demo")] for out in (narrow, whole))
    assert len({frozenset(table.split()) for table in tables}) == 1


def test_it_begins_with_a_summary_and_ends_with_what_to_type(panscope: Command, gemma: Path):
    lines = panscope("plan", "demo", "--gpu", "RTX-4090").out.splitlines()
    assert lines[0] == "demo: 24 coders (jumprelu, topk) at attn_z, mlp_out, resid_post"
    assert re.match(r"on 1 x RTX-4090: \d+ s, [\d.]+ ms a step, about \$0\.00; [\d.]+ GiB of 24 GiB each$", lines[3])
    assert re.match(r"on this machine \(cpu, [\d,]+ GFLOP/s in float32\): about .*, [\d.e+]+ ms a step$", lines[4])
    assert lines[-1] == "to train it: panscope train demo"
    large = panscope("plan", gemma, "--gpu", "A100-80").out.splitlines()
    assert "it takes 3 of them" in large[3]
    assert large[-3].startswith("to train it in 4 shares, each on one A100-80GB in about ")
    assert large[-2].startswith(f"  panscope train {gemma} --share 1/4    and so on to --share 4/4")
    assert large[-1] == "  panscope merge runs/two-cells-share-*-of-4 --out runs/two-cells"


def test_a_penalty_far_above_every_recipe_is_said(panscope: Command, tmp_path: Path):
    (tmp_path / "s.toml").write_text('[[coders]]\narchitecture = "jumprelu"\nwidth = 64\nsparsity = 32\n')
    assert "for an L0 of 32 write --target-l0 32" in panscope("plan", "s.toml").out
