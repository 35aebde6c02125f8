"""SAELens' own loader reads exported files and computes the same reconstruction."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.types import Site, UserError
from tests.support.made_coders import D_OUT, PREDICTS, MakeCoder, filled, reconstructed
from tests.support.peers import run_in_peers

SAELENS = FORMATS["saelens"]
Z = Site(2, "attn_z")
STREAM = (Site(0, "resid_post"), Site(1, "resid_post"))
TRANSCODER = {"predicts": PREDICTS, "d_out": D_OUT}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("relu", {}),
    "standard_pre_bias": ("relu", {"pre_encoder_bias": True}),
    "topk": ("topk", {}),
    "topk_by_norm": ("topk", {"selection": "decoder_norm"}),
    "batchtopk": ("batchtopk", {}),
    "batchtopk_by_norm": ("batchtopk", {"selection": "decoder_norm", "pre_encoder_bias": True}),
    "matryoshka": ("matryoshka", {}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu_layer_norm": ("jumprelu", {"normaliser": "standardise"}),
    "topk_layer_norm": ("topk", {"normaliser": "standardise", "pre_encoder_bias": True}),
    "standard_row_norm": ("relu", {"normaliser": "token_norm"}),
    "gated": ("gated", {}),
    "gated_pre_bias": ("gated", {"pre_encoder_bias": True}),
    "of_heads": ("jumprelu", {"site": Z}),
    "several_layers": ("relu", {"sites": STREAM}),
    "topk_transcoder": ("topk", {"predicts": PREDICTS}),
    "gated_transcoder": ("gated", {"predicts": PREDICTS}),
    "transcoder": ("relu", TRANSCODER),
    "transcoder_pre_bias": ("relu", {"predicts": PREDICTS, "pre_encoder_bias": True}),
    "skip_transcoder": ("relu", TRANSCODER | {"skip": True}),
    "jumprelu_transcoder": ("jumprelu", TRANSCODER),
    "jumprelu_skip_transcoder": ("jumprelu", TRANSCODER | {"skip": True}),
    "batchtopk_transcoder": ("batchtopk", TRANSCODER | {"skip": True}),
    "skip_in_place": ("jumprelu", {"skip": True}),
}
ABOUT = {"model": "EleutherAI/pythia-70m", "run": "runs/mine", "context_size": 128, "prepend_bos": True}
LOAD = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
root = Path(sys.argv[1])
x = load_file(root / "x.safetensors")["x"]
found = {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    sae = SAE.load_from_disk(folder)
    z = sae.cfg.reshape_activations == "hook_z"
    rows = x.view(len(x), 2, -1) if z else x
    with torch.no_grad():
        found[folder.name] = sae(rows).reshape(len(x), -1).contiguous()
        found[folder.name + ".codes"] = sae.encode(rows).contiguous()
    print(folder.name, sae.cfg.architecture(), sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out)
save_file(found, root / "found.safetensors")
"""


@pytest.fixture(scope="module")
def written(make_coder: MakeCoder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, WiredCoder]]:
    root = tmp_path_factory.mktemp("written")
    made = {name: make_coder(architecture, **fields) for name, (architecture, fields) in VARIANTS.items()}
    for name, wired in made.items():
        files = SAELENS.write(ImportedCoder(wired, ABOUT), root / name)
        assert {path.name for path in files} == {path.name for path in (root / name).iterdir()}
    return root, made


@pytest.fixture(scope="module")
def theirs(written: tuple[Path, dict[str, WiredCoder]]) -> tuple[Tensor, dict[str, Tensor], dict[str, list[str]]]:
    root, _ = written
    x = 4 * torch.randn(64, 12, generator=torch.Generator().manual_seed(7))
    save_file({"x": x}, root / "x.safetensors")
    said = [line.split() for line in run_in_peers(LOAD, root).splitlines()]
    return x, load_file(root / "found.safetensors"), {line[0]: line[1:] for line in said if line[0] in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_their_reconstruction_is_ours(name: str, written: Any, theirs: Any) -> None:
    x, found, _ = theirs
    torch.testing.assert_close(found[name], reconstructed(written[1][name], x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "topk_by_norm"])
def test_their_codes_are_ours(name: str, written: Any, theirs: Any) -> None:
    x, found, _ = theirs
    with torch.no_grad():
        codes = written[1][name].encode(x).dense()
    torch.testing.assert_close(found[f"{name}.codes"], codes, rtol=1e-5, atol=1e-5)
    assert 0 < codes.gt(0).float().mean() < 1


def test_codes_ranked_by_norm_are_ours_times_the_norm(written: Any, theirs: Any) -> None:
    x, found, _ = theirs
    wired = written[1]["topk_by_norm"]
    with torch.no_grad():
        codes = wired.encode(x).dense() * wired.coder.W_dec.norm(dim=1)
    torch.testing.assert_close(found["topk_by_norm.codes"], codes, rtol=1e-5, atol=1e-5)


def test_it_takes_them_for_what_they_are(theirs: Any) -> None:
    _, _, said = theirs
    assert said["jumprelu_skip_transcoder"] == [
        "jumprelu_skip_transcoder",
        "blocks.3.mlp.hook_in",
        "blocks.3.hook_mlp_out",
    ]
    assert said["of_heads"] == ["jumprelu", "blocks.2.attn.hook_z", "None"]
    assert said["matryoshka"][0] == said["batchtopk"][0] == "jumprelu"
    assert said["topk_transcoder"] == ["topk", "blocks.3.mlp.hook_in", "blocks.3.hook_mlp_out"]


@pytest.mark.parametrize("name", VARIANTS)
def test_import_then_export_gives_the_same_files(name: str, written: Any, tmp_path: Path) -> None:
    root, made = written
    assert SAELENS.detect(root / name)
    foreign = SAELENS.read(root / name, ImportOptions())
    assert foreign.wired.wiring == made[name].wiring
    assert foreign.wired.normaliser == made[name].normaliser
    SAELENS.write(foreign, tmp_path)
    before, after = load_file(root / name / "sae_weights.safetensors"), load_file(tmp_path / "sae_weights.safetensors")
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)
    first, second = (json.loads((folder / "cfg.json").read_text()) for folder in (root / name, tmp_path))
    assert {**first, "metadata": None} == {**second, "metadata": None}


def test_the_file_says_where_it_reads_and_where_it_comes_from(written: Any) -> None:
    metadata = json.loads((written[0] / "skip_transcoder" / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.3.mlp.hook_in"
    assert metadata["hf_hook_name"] == "gpt_neox.layers.3.mlp.input"
    assert metadata["hf_hook_name_out"] == "gpt_neox.layers.3.mlp.output"
    assert metadata["model_name"] == "EleutherAI/pythia-70m"
    assert metadata["context_size"] == 128
    assert metadata["panscope"]["about"]["run"] == "runs/mine"


def test_a_fixed_factor_is_folded_before_writing(make_coder: MakeCoder, rows: Tensor, tmp_path: Path) -> None:
    inner = make_coder("jumprelu", pre_encoder_bias=True)
    scaled = WiredCoder(inner.wiring, inner.coder, Normaliser(kind="sqrt_d", scale_in=0.5, scale_out=0.5))
    SAELENS.write(ImportedCoder(scaled), tmp_path)
    again = SAELENS.read(tmp_path, ImportOptions()).wired
    torch.testing.assert_close(reconstructed(again, rows), reconstructed(scaled, rows), rtol=1e-5, atol=1e-5)
    assert again.normaliser.kind == "none"


def test_what_has_no_place_there_is_refused(make_coder: MakeCoder, tmp_path: Path) -> None:
    crossing = {"predicts": PREDICTS, "d_out": D_OUT}
    wide = coders.build(make_coder("relu").coder.config.replace(d_in=24, d_out=24))
    several = WiredCoder(Wiring(wiring="crosscoder", reads=STREAM, predicts=STREAM), filled(wide))
    for wired, word in (
        (make_coder("gated", **crossing), "transcoder"),
        (make_coder("topk", skip=True), "skip"),
        (make_coder("jumprelu", predicts=PREDICTS, normaliser="standardise"), "does not denormalise"),
        (make_coder("jumprelu", skip=True, normaliser="token_norm"), "does not denormalise"),
        (several, "crosscoder"),
    ):
        with pytest.raises(UserError, match=word):
            SAELENS.write(ImportedCoder(wired), tmp_path / "none")
    assert not (tmp_path / "none").exists()
