"""sparsify's folders, compared with the tool itself if installed, and with float64 formulas.

Shape letters: B rows, D width, F latents, K codes a row.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.types import Site, UserError
from tests.support.making import (
    AT_RESID,
    MLP_IN,
    MLP_OUT,
    RESID,
    STANDARDISE,
    D,
    F,
    K,
    assert_equal,
    assert_near,
    foreign,
    random_coder,
    reconstruct,
    rows,
    save_rows,
    through_a_run,
)
from tests.support.peers import peers_python, run_in_peers

FORMAT = FORMATS["sparsify"]
LOAD = """
import pathlib, sys, torch
from sparsify import SparseCoder
root = pathlib.Path(sys.argv[1])
x, answers = torch.load(root / "rows.pt"), {}
for folder in sorted(path.parent for path in root.rglob("sae.safetensors")):
    coder = SparseCoder.load_from_disk(folder)
    values, indices, _ = coder.encode(x.to(coder.dtype))
    codes = torch.zeros(len(x), coder.num_latents).scatter(1, indices, values.float())
    y_hat = coder(x.to(coder.dtype)).sae_out
    if coder.cfg.multi_topk:  # forward gives the reconstruction from 4 K latents then, a term of its training loss
        y_hat = coder.decode(values, indices)
    answers[folder.relative_to(root).as_posix()] = {"codes": codes.detach(), "y_hat": y_hat.detach().float()}
torch.save(answers, root / "answers.pt")
"""
SAVE = """
import json, pathlib, sys, torch
from sparsify import SparseCoder, SparseCoderConfig
root, d, f, k = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
torch.manual_seed(0)
for name, options in {
    "layers.3": dict(num_latents=f),
    "layers.4": dict(expansion_factor=3, normalize_decoder=False, multi_topk=True),
    "layers.3.mlp": dict(num_latents=f, transcode=True),
    "layers.5.mlp": dict(num_latents=f, transcode=True, skip_connection=True),
    "layers.2/seed7": dict(num_latents=f),
}.items():
    coder = SparseCoder(d, SparseCoderConfig(k=k, **options))
    for parameter in coder.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.3)
    coder.save_to_disk(root / name)
half = SparseCoder(d, SparseCoderConfig(k=k, num_latents=f), dtype=torch.bfloat16)
half.save_to_disk(root / "layers.6")
json.dump({"sae": {"k": k}, "model": "EleutherAI/pythia-70m", "dataset": "x"}, open(root / "config.json", "w"))
"""
EXPORTS: dict[str, ImportedCoder] = {
    "sae": foreign(random_coder("topk")),
    "sae_pre": foreign(random_coder("topk", pre_encoder_bias=True)),
    "sae_skip": foreign(random_coder("topk", skip=True)),
    "sae_norm": foreign(random_coder("topk", selection="decoder_norm")),
    "transcoder": foreign(random_coder("topk"), MLP_IN, MLP_OUT),
    "transcoder_pre": foreign(random_coder("topk", pre_encoder_bias=True), MLP_IN, MLP_OUT),
    "transcoder_skip": foreign(random_coder("topk", skip=True), MLP_IN, MLP_OUT),
}
SAVED = {
    "layers.3": (RESID, RESID),
    "layers.4": (Site(4, "resid_post"), Site(4, "resid_post")),
    "layers.3.mlp": (MLP_IN, MLP_OUT),
    "layers.5.mlp": (Site(5, "mlp_in"), Site(5, "mlp_out")),
    "layers.2/seed7": (Site(2, "resid_post"), Site(2, "resid_post")),
    "layers.6": (Site(6, "resid_post"), Site(6, "resid_post")),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tool's results for every exported coder."""
    peers_python()
    root = tmp_path_factory.mktemp("exported")
    save_rows(root)
    for name, one in EXPORTS.items():
        FORMAT.write(one, root / name)
    run_in_peers(LOAD, root)
    return torch.load(root / "answers.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folders saved by the tool, with its results."""
    peers_python()
    root = tmp_path_factory.mktemp("saved")
    save_rows(root)
    run_in_peers(SAVE, root, D, F, K)
    run_in_peers(LOAD, root)
    return root, torch.load(root / "answers.pt")


@pytest.mark.parametrize("name", EXPORTS)
def test_their_loader_reads_what_we_write(name: str, exported: dict[str, Any]) -> None:
    codes, y_hat = reconstruct(EXPORTS[name], rows())
    assert_near(exported[name]["y_hat"], y_hat)
    norms = EXPORTS[name].wired.coder.W_dec.detach().norm(dim=1) if name == "sae_norm" else 1.0
    assert_near(exported[name]["codes"], codes * norms)


@pytest.mark.parametrize("name", SAVED)
def test_we_read_what_they_save(name: str, saved: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = saved[0] / name
    assert FORMAT.detect(folder)
    found = FORMAT.read(folder, ImportOptions())
    codes, y_hat = reconstruct(found, rows())
    limit = 0.02 if name == "layers.6" else 1e-5  # there they compute in bfloat16
    assert_near(y_hat, saved[1][name]["y_hat"], limit)
    assert_near(codes, saved[1][name]["codes"], limit * 10 if name == "layers.6" else limit)
    assert (found.wired.wiring.reads[0], found.wired.wiring.predicts[0]) == SAVED[name]
    assert found.about["model"] == "EleutherAI/pythia-70m"
    FORMAT.write(found, tmp_path / "again")
    first, again = (safetensors.torch.load_file(place / "sae.safetensors") for place in (folder, tmp_path / "again"))
    assert_equal(again, {key: tensor.float() for key, tensor in first.items()})
    wanted, config = (json.loads((place / "cfg.json").read_text()) for place in (folder, tmp_path / "again"))
    assert config.pop("num_latents") == (wanted.pop("num_latents") or 3 * D)
    assert {key: config[key] for key in wanted} == wanted


def save(folder: Path, **changes: Any) -> Path:
    """A folder in the tool's layout, with random weights and changed entries of cfg.json; F = 40, D = 12."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(5)
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    if changes.get("skip_connection"):
        shapes["W_skip"] = (D, D)
    tensors = {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, folder / "sae.safetensors")
    config = {"activation": "topk", "num_latents": F, "k": K, "d_in": D, "transcode": False, "skip_connection": False}
    (folder / "cfg.json").write_text(json.dumps({**config, **changes}))
    return folder


def oracle(folder: Path, x: Tensor, *, transcode: bool) -> Tensor:
    s = {name: tensor.double() for name, tensor in safetensors.torch.load_file(folder / "sae.safetensors").items()}
    x = x.double()
    inside = x if transcode else x - s["b_dec"]
    h = (inside @ s["encoder.weight"].T + s["encoder.bias"]).clamp_min(0)
    kept = h.argsort(dim=1, descending=True)[:, :K]
    y_hat = torch.zeros_like(h).scatter(1, kept, h.gather(1, kept)) @ s["W_dec"] + s["b_dec"]
    return y_hat + x @ s["W_skip"].T if "W_skip" in s else y_hat


@pytest.mark.parametrize("transcode", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_in_float64_and_back(transcode: bool, skip: bool, tmp_path: Path) -> None:
    folder = save(tmp_path / "layers.3.mlp", transcode=transcode, skip_connection=skip, some_new_key=1)
    asked = ImportOptions(reads=MLP_IN if transcode else MLP_OUT, predicts=MLP_OUT, model="someone/unknown")
    found = FORMAT.read(folder, asked)
    assert_near(reconstruct(found, rows())[1], oracle(folder, rows(), transcode=transcode))
    again = through_a_run(folder, "sparsify", tmp_path, asked)
    assert_equal(*(safetensors.torch.load_file(place / "sae.safetensors") for place in (again, folder)))
    assert json.loads((again / "cfg.json").read_text())["hookpoint"] == "layers.3.mlp"


@pytest.mark.parametrize(
    ("hookpoint", "model", "transcode", "sites"),
    [
        ("layers.10", None, False, ("L10.resid_post", "L10.resid_post")),
        ("h.4.mlp", None, False, ("L04.mlp_out", "L04.mlp_out")),
        ("h.4.mlp", None, True, ("L04.mlp_in", "L04.mlp_out")),
        ("layers.3.self_attn.o_proj", "meta-llama/Llama-3.1-8B", False, ("L03.attn_out", "L03.attn_out")),
        ("layers.3.mlp", None, False, None),  # before Gemma's post-norm, what is added to the residual elsewhere
        ("layers.3.mlp", "google/gemma-2-2b", False, None),
        ("layers.3.mlp", "meta-llama/Llama-3.1-8B", False, ("L03.mlp_out", "L03.mlp_out")),
        ("layers.3.mlp", "meta-llama/Llama-3.1-8B", True, ("L03.mlp_in", "L03.mlp_out")),
        ("layers.x", None, False, None),
    ],
)
def test_the_folders_name_is_the_site(
    hookpoint: str, model: str | None, transcode: bool, sites: tuple[str, str] | None, tmp_path: Path
) -> None:
    folder = save(tmp_path / hookpoint, transcode=transcode)
    if sites is None:
        with pytest.raises(UserError, match=r"site"):
            FORMAT.read(folder, ImportOptions(model=model))
        return
    wiring = FORMAT.read(folder, ImportOptions(model=model)).wired.wiring
    assert (str(wiring.reads[0]), str(wiring.predicts[0])) == sites
    elsewhere = FORMAT.read(folder, ImportOptions(reads=Site(1, "attn_out"), predicts=RESID)).wired.wiring
    assert (elsewhere.reads, elsewhere.predicts) == ((Site(1, "attn_out"),), (RESID,))


def test_a_transcoder_needs_both_sites(tmp_path: Path) -> None:
    folder = save(tmp_path / "somewhere", transcode=True)
    with pytest.raises(UserError, match="--predicts"):
        FORMAT.read(folder, AT_RESID)


def test_what_is_written_says_where_it_stands_and_comes_from(tmp_path: Path) -> None:
    one = foreign(random_coder("topk", skip=True), MLP_IN, MLP_OUT, note="from a test")
    FORMAT.write(one, tmp_path / "anywhere")
    config = json.loads((tmp_path / "anywhere" / "cfg.json").read_text())
    assert config["hookpoint"] == "layers.3.mlp"
    assert config["hook_name"] == "blocks.3.mlp.hook_in"
    assert config["hf_hook_name_out"] == "gpt_neox.layers.3.mlp.output"
    assert config["panscope"]["about"]["note"] == "from a test"
    found = FORMAT.read(tmp_path / "anywhere", ImportOptions())
    assert found.wired.wiring == one.wired.wiring
    assert found.about["model"] == "EleutherAI/pythia-70m"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signed": True}, "keeps the signs"),
        ({"activation": "groupmax"}, "'groupmax'"),
        ({"k": F + 1}, "above the width"),
        ({"k": 0}, "k is 0"),
        ({"k": "many"}, "k is 'many'"),
        ({"d_in": D + 1}, "latents of width 13"),
        ({"num_latents": 0, "expansion_factor": 2}, "says 24 latents"),
        ({"num_latents": 1 << 60}, "says 1152921504606846976 latents"),
        ({"skip_connection": None}, "skip_connection"),
    ],
)
def test_what_does_not_fit_is_a_sentence(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        FORMAT.read(save(tmp_path / "layers.3", **changes), AT_RESID)


def test_a_skip_that_is_not_announced_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "layers.3", skip_connection=True)
    config = json.loads((folder / "cfg.json").read_text()) | {"skip_connection": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="W_skip"):
        FORMAT.read(folder, AT_RESID)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (foreign(random_coder("relu")), "'relu'"),
        (foreign(random_coder("jumprelu")), "'jumprelu'"),
        (foreign(random_coder("batchtopk")), "'batchtopk'"),
        (foreign(random_coder("topk"), normaliser=STANDARDISE), "standardise"),
        (foreign(random_coder("topk", d_out=D + 4, encoder_init="own"), MLP_IN, MLP_OUT), "width 12"),
        # It knows transcoders from a module's input to its output, and writes down the module alone.
        (foreign(random_coder("topk"), Site(3, "mlp_in_no_gain"), MLP_OUT), "GPT-NeoX"),
        (foreign(random_coder("topk"), RESID, Site(7, "mlp_out")), "from L03.resid_post to L07.mlp_out"),
        (foreign(random_coder("topk"), Site(2, "attn_z"), Site(3, "attn_out")), "from L02.attn_z to L03.attn_out"),
        (foreign(random_coder("topk"), MLP_IN, MLP_OUT, model="google/gemma-2-2b"), "Gemma 2"),
        (foreign(random_coder("topk"), MLP_IN, MLP_OUT, model="someone/unknown"), "unknown family"),
        (foreign(random_coder("topk"), MLP_IN, MLP_OUT, model="someone/unknown", hookpoint="L03M"), "unknown family"),
    ],
)
def test_what_there_is_no_place_for_is_refused(one: ImportedCoder, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        FORMAT.write(one, tmp_path / "a")
    assert not (tmp_path / "a").exists()
