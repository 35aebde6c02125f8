"""Gemma Scope and Gemma Scope 2, import and export compared with SAELens' loaders, and published files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.types import Site, UserError
from tests.support.made_coders import D_IN, D_OUT, PREDICTS, WIDTH, MakeCoder, reconstructed
from tests.support.making import through_a_run
from tests.support.peers import run_in_peers

ONE, TWO = FORMATS["gemma_scope"], FORMATS["gemma_scope_2"]
LOAD = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
root = Path(sys.argv[1])

def local(repo_id, filename, subfolder=None, **options):
    path = root / repo_id / (subfolder or "") / filename
    if not path.is_file():
        raise loaders.EntryNotFoundError(filename)
    return str(path)

loaders.hf_hub_download = local
loaders.get_safetensors_tensor_shapes = lambda repo, name: {
    key: list(value.shape) for key, value in load_file(root / repo / name).items()
}
x = load_file(root / "x.safetensors")["x"]
found, said = {}, {}
for loader, repo, folder in json.loads(sys.argv[2]):
    overrides = {"d_in": 12, "d_sae": 40}
    if "transcoder" in folder + repo:
        overrides["d_out"] = 10
    def convert(cfg_overrides, **options):
        return getattr(loaders, loader)(cfg_overrides={**cfg_overrides, **overrides}, **options)
    sae = SAE.from_pretrained(repo, folder, converter=convert)
    rows = x.view(len(x), 2, -1) if sae.cfg.reshape_activations == "hook_z" else x
    with torch.no_grad():
        found[f"{repo}/{folder}"] = sae(rows).reshape(len(x), -1).contiguous()
    meta = sae.cfg.metadata
    said[f"{repo}/{folder}"] = [sae.cfg.architecture(), meta.hook_name, meta.hook_name_out, meta.model_name]
save_file(found, root / "found.safetensors")
print(json.dumps(said))
"""
ONES = {
    "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": ("L20.resid_post", None),
    "google/gemma-scope-9b-it-res/layer_9/width_131k/average_l0_13": ("L09.resid_post", None),
    "google/gemma-scope-2b-pt-mlp/layer_0/width_65k/average_l0_30": ("L00.mlp_out", None),
    "google/gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_8": ("L03.attn_z", None),
    "google/gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_8": ("L03.mlp_in_no_gain", "L03.mlp_out"),
}
TWOS = {
    "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium": ("L13.resid_post", None),
    "google/gemma-scope-2-1b-pt/attn_out_all/layer_2_width_16k_l0_small": ("L02.attn_z", None),
    "google/gemma-scope-2-1b-pt/mlp_out/layer_13_width_16k_l0_big": ("L13.mlp_out", None),
    "google/gemma-scope-2-1b-pt/transcoder/layer_7_width_16k_l0_small": ("L07.mlp_in", "L07.mlp_out"),
    "google/gemma-scope-2-1b-pt/transcoder_all/layer_7_width_16k_l0_small_affine": ("L07.mlp_in", "L07.mlp_out"),
}


def random_weights(seed: int, d_out: int) -> dict[str, Tensor]:
    """A coder in the layout of Gemma Scope, with one latent without a threshold."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=draw)

    threshold = normal(WIDTH).abs()
    threshold[0] = 0
    return {
        "W_enc": normal(D_IN, WIDTH),
        "b_enc": normal(WIDTH),
        "W_dec": normal(WIDTH, d_out),
        "b_dec": normal(d_out),
        "threshold": threshold,
    }


def split(place: str) -> tuple[str, str]:
    repository = "/".join(place.split("/")[:2])
    return repository, place.removeprefix(f"{repository}/")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for number, (place, (_, predicts)) in enumerate(ONES.items()):
        (root / place).mkdir(parents=True)
        weights = random_weights(number, D_OUT if predicts else D_IN)
        np.savez(root / place / "params.npz", **{name: tensor.numpy() for name, tensor in weights.items()})  # type: ignore[arg-type]
    for number, (place, (_, predicts)) in enumerate(TWOS.items()):
        (root / place).mkdir(parents=True)
        weights = {
            name.replace("W_", "w_"): tensor
            for name, tensor in random_weights(10 + number, D_OUT if predicts else D_IN).items()
        }
        if place.endswith("affine"):
            weights["affine_skip_connection"] = 0.3 * torch.randn(D_IN, D_OUT)
        save_file(weights, root / place / "params.safetensors")
    save_file({"x": 4 * torch.randn(64, D_IN)}, root / "x.safetensors")
    return root


def loaded_by_saelens(root: Path, places: list[str]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    def loader(place: str) -> str:
        if place.startswith("google/gemma-scope-2-"):
            return "gemma_3_sae_huggingface_loader"
        return "gemma_2_transcoder_huggingface_loader" if "transcoders" in place else "gemma_2_sae_huggingface_loader"

    said = json.loads(run_in_peers(LOAD, root, json.dumps([[loader(place), *split(place)] for place in places])))
    return load_file(root / "found.safetensors"), said


@pytest.fixture(scope="module")
def theirs(published: Path) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    return loaded_by_saelens(published, [*ONES, *TWOS])


def read(root: Path, place: str) -> ImportedCoder:
    format = TWO if place in TWOS else ONE
    assert format.detect(root / place)
    return format.read(root / place, ImportOptions())


@pytest.mark.parametrize("place", [*ONES, *TWOS])
def test_files_as_published(place: str, published: Path, theirs: Any) -> None:
    x = load_file(published / "x.safetensors")["x"]
    foreign = read(published, place)
    torch.testing.assert_close(reconstructed(foreign.wired, x), theirs[0][place], rtol=1e-5, atol=1e-5)
    reads, predicts = (ONES | TWOS)[place]
    assert str(foreign.wired.wiring.reads[0]) == reads
    assert str(foreign.wired.wiring.predicts[0]) == (predicts or reads)
    model = theirs[1][place][3]
    assert foreign.about["model"] in (model, f"google/{model}")


def expected(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """[B, E] in float64, by the formulas of Gemma Scope's papers."""
    w = {name.replace("W_", "w_"): tensor.double() for name, tensor in weights.items()}
    pre = x.double() @ w["w_enc"] + w["b_enc"]
    y = (torch.relu(pre) * (pre > w["threshold"])) @ w["w_dec"] + w["b_dec"]
    return y + x.double() @ w["affine_skip_connection"] if "affine_skip_connection" in w else y


@pytest.mark.parametrize("place", TWOS)
def test_the_second_against_its_formula(place: str, published: Path) -> None:
    x = torch.randn(64, D_IN)
    wanted = expected(load_file(published / place / "params.safetensors"), x)
    torch.testing.assert_close(reconstructed(read(published, place).wired, x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", ONES)
def test_the_first_against_its_formula(place: str, published: Path) -> None:
    x = torch.randn(64, D_IN)
    with np.load(published / place / "params.npz") as data:
        wanted = expected({name: torch.from_numpy(data[name]) for name in data.files}, x)
    torch.testing.assert_close(reconstructed(read(published, place).wired, x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [*ONES, *TWOS])
def test_import_then_export_gives_back_the_tensors(place: str, published: Path, tmp_path: Path) -> None:
    """Imported through a run, whose model has other widths than those of the published files."""
    foreign = read(published, place)
    asked = ImportOptions(model="someone/unknown")
    out = through_a_run(published / place, (TWO if place in TWOS else ONE).name, tmp_path, asked)
    if place in TWOS:
        before, after = (load_file(folder / "params.safetensors") for folder in (published / place, out))
        again = TWO.read(out, ImportOptions())
    else:
        before, after = (
            {name: torch.from_numpy(array) for name, array in np.load(folder / "params.npz").items()}
            for folder in (published / place, out)
        )
        again = ONE.read(out, ImportOptions())
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert again.wired.wiring == foreign.wired.wiring
    assert again.about["model"] == "someone/unknown"


def test_a_module_path_is_one_of_the_models_own_family(published: Path, tmp_path: Path) -> None:
    """The norm after attention is Gemma's end of attention, and Llama's before the MLP."""
    save_file(load_file(published / next(iter(TWOS)) / "params.safetensors"), tmp_path / "params.safetensors")
    norm, resid = "model.layers.3.post_attention_layernorm.output", "model.layers.3.output"

    def site(point: str, model: str | None, said: str | None = None) -> Site:
        config = {"hf_hook_point_in": point} | ({"model_name": said} if said else {})
        (tmp_path / "config.json").write_text(json.dumps(config))
        return TWO.read(tmp_path, ImportOptions(model=model)).wired.wiring.reads[0]

    assert site(norm, None) == site(norm, None, "gemma-v3-4b-pt") == Site(3, "attn_out")
    assert site(norm, "meta-llama/Llama-3.1-8B") == site(norm, None, "Qwen/Qwen3-8B") == Site(3, "mlp_in")
    assert site(resid, "someone/unknown") == Site(3, "resid_post")
    with pytest.raises(UserError, match="not a Panscope site: name"):
        site(norm, "someone/unknown")


def test_without_a_family_there_are_no_module_paths_but_the_files_own(make_coder: MakeCoder, tmp_path: Path) -> None:
    def config(out: Path, about: dict[str, Any]) -> dict[str, Any]:
        TWO.write(ImportedCoder(make_coder("jumprelu", predicts=PREDICTS), about), out)
        return json.loads((out / "config.json").read_text())

    points = ("hf_hook_point_in", "hf_hook_point_out", "hf_hook_name", "hf_hook_name_out")
    written = config(tmp_path / "a", {"model": "someone/unknown"})
    assert [written[name] for name in points] == [None] * 4
    (tmp_path / "a" / "config.json").write_text(
        json.dumps({"model_name": "someone/unknown", "hf_hook_point_in": "m.3.in", "hf_hook_point_out": "m.3.out"})
    )
    found = TWO.read(tmp_path / "a", ImportOptions(reads=Site(3, "mlp_in"), predicts=PREDICTS))
    assert [config(tmp_path / "b", dict(found.about))[name] for name in points] == ["m.3.in", "m.3.out"] * 2


def test_what_we_write_saelens_loads(make_coder: MakeCoder, tmp_path: Path) -> None:
    """Every architecture that is JumpReLU or becomes it, under the names that its loaders know layers and sites by."""
    crossing = {"predicts": PREDICTS, "d_out": D_OUT}
    ones = {
        "google/gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_4": make_coder("batchtopk", pre_encoder_bias=True),
        "google/gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_5": make_coder("relu", pre_encoder_bias=True),
        "google/gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_4": make_coder("jumprelu", **crossing),
    }
    twos = {
        "google/gemma-scope-2-1b-pt/mlp_out/layer_3_width_16k_l0_small": make_coder("matryoshka", site=PREDICTS),
        "google/gemma-scope-2-1b-pt/transcoder/layer_3_width_16k_l0_small": make_coder("relu", **crossing),
        "google/gemma-scope-2-1b-pt/transcoder/layer_3_width_16k_l0_small_affine": make_coder(
            "batchtopk", **crossing, skip=True, selection="decoder_norm"
        ),
    }
    about = {"model": "google/gemma-3-1b-pt"}
    for place, wired in ones.items():
        ONE.write(ImportedCoder(wired, about), tmp_path / place)
    for place, wired in twos.items():
        TWO.write(ImportedCoder(wired, about), tmp_path / place)
    x = 4 * torch.randn(64, D_IN)
    save_file({"x": x}, tmp_path / "x.safetensors")
    found, said = loaded_by_saelens(tmp_path, [*ones, *twos])
    for place, wired in (ones | twos).items():
        torch.testing.assert_close(found[place], reconstructed(wired, x), rtol=1e-5, atol=1e-5)
    kinds = [said[place][0] for place in twos]
    assert kinds == ["jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder"]
    config = json.loads((tmp_path / [*twos][2] / "config.json").read_text())
    assert config["hf_hook_point_in"] == "model.layers.3.pre_feedforward_layernorm.output"
    assert config["hf_hook_point_out"] == "model.layers.3.post_feedforward_layernorm.output"
    assert config["hook_name_out"] == "blocks.3.hook_mlp_out"
    beside = json.loads((tmp_path / next(iter(ones)) / "panscope.json").read_text())
    assert (beside["hook_name"], beside["hf_hook_name"]) == ("blocks.3.mlp.hook_in", "model.layers.3.mlp.input")


def test_what_they_have_no_place_for(make_coder: MakeCoder, tmp_path: Path) -> None:
    for wired, format, word in (
        (make_coder("topk"), ONE, "'topk'"),
        (make_coder("gated"), TWO, "'gated'"),
        (make_coder("jumprelu", normaliser="standardise"), TWO, "'standardise'"),
        (make_coder("jumprelu", skip=True), ONE, "skip"),
    ):
        with pytest.raises(UserError, match=word):
            format.write(ImportedCoder(wired), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_site_that_no_name_says_is_asked_for(published: Path, tmp_path: Path) -> None:
    (tmp_path / "params.npz").write_bytes((published / next(iter(ONES)) / "params.npz").read_bytes())
    with pytest.raises(UserError, match="does not state the site"):
        ONE.read(tmp_path, ImportOptions())
    found = ONE.read(tmp_path / "params.npz", ImportOptions(reads=Site(1, "mlp_out"), model="mine"))
    assert found.wired.wiring.reads == (Site(1, "mlp_out"),)
    assert found.about["model"] == "mine"


def test_coders_of_the_embedding_and_of_several_layers_are_refused(published: Path, tmp_path: Path) -> None:
    folder = tmp_path / "google/gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"
    folder.mkdir(parents=True)
    (folder / "params.npz").write_bytes((published / next(iter(ONES)) / "params.npz").read_bytes())
    with pytest.raises(UserError, match="embedding"):
        ONE.read(folder, ImportOptions())
    clt = tmp_path / "google/gemma-scope-2-1b-pt/clt/layer_3_width_16k_l0_small"
    clt.mkdir(parents=True)
    weights = load_file(published / next(iter(TWOS)) / "params.safetensors")
    save_file(weights, clt / "params.safetensors")
    with pytest.raises(UserError, match="cross-layer"):
        TWO.read(clt, ImportOptions())
    save_file(weights | {"w_dec": torch.zeros(WIDTH, 3, D_IN)}, clt / "params.safetensors")
    with pytest.raises(UserError, match="'w_dec' has shape"):
        TWO.read(clt, ImportOptions())


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"architecture": "topk"}, "'topk'"),
        ({"hf_hook_point_in": "model.layers.3.other.output"}, "not a Panscope site"),
        ({"hf_hook_point_in": "model.layers.3.output", "hf_hook_point_out": "lm_head.output"}, "predicts"),
    ],
)
def test_a_config_that_says_otherwise(config: dict[str, Any], word: str, published: Path, tmp_path: Path) -> None:
    weights = load_file(published / next(iter(TWOS)) / "params.safetensors")
    save_file(weights, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=word):
        TWO.read(tmp_path, ImportOptions())
