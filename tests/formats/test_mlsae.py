"""mlsae's folders. The tool is on no package index, so its loader is stood in for: the hub's own mixin, which does its
saving and loading, around a class with its arguments and tensors; and its arithmetic in float64, written out here.

Shape letters: B rows, D width, F latents, K codes a row, L layers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.transforms.fold_norm import fold_norm
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

FORMAT = FORMATS["mlsae"]
CLASS = """
import pathlib, sys, torch
from huggingface_hub import PyTorchModelHubMixin
class Standin(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, layers, n_inputs, n_latents, k, dead_steps_threshold, dead_threshold=1e-3, auxk=256,
                 standardize=True, lens=False):
        super().__init__()
        self.k, self.standardize = k, standardize
        self.encoder = torch.nn.Linear(n_inputs, n_latents, bias=False)
        self.decoder = torch.nn.Linear(n_latents, n_inputs, bias=False)
        self.pre_encoder_bias = torch.nn.Parameter(torch.randn(n_inputs))
        self.decoder.weight.data = self.decoder.weight.data.T.contiguous().T
    def forward(self, x):
        inside, mean, std = x, 0.0, 1.0
        if self.standardize:
            mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
            inside = (x - mean) / (std + 1e-5)
        best = (self.encoder(inside - self.pre_encoder_bias)).topk(self.k, dim=1)
        codes = torch.zeros(len(x), self.encoder.out_features).scatter(1, best.indices, best.values.relu())
        return (codes @ self.decoder.weight.T + self.pre_encoder_bias) * std + mean
root = pathlib.Path(sys.argv[1])
x = torch.load(root / "rows.pt")
"""
LOAD = (
    CLASS
    + """
answers = {}
for folder in sorted(path.parent for path in root.glob("*/model.safetensors")):
    answers[folder.name] = Standin.from_pretrained(str(folder))(x).detach()
torch.save(answers, root / "answers.pt")
"""
)
SAVE = (
    CLASS
    + """
torch.manual_seed(0)
d, f, k = map(int, sys.argv[2:])
for name, options in {"raw": dict(standardize=False), "rows": dict(auxk=None), "one": {}}.items():
    layers = [2] if name == "one" else [0, 1, 2]
    coder = Standin(layers=layers, n_inputs=d, n_latents=f, k=k, dead_steps_threshold=76, **options)
    coder.save_pretrained(root / name)
"""
)
NO_BIAS: dict[str, Any] = {"pre_encoder_bias": True, "encoder_bias": False}


def several(one: ImportedCoder) -> ImportedCoder:
    """The same coder for three layers."""
    sites = [Site(layer, "resid_post") for layer in (0, 1, 4)]
    wiring = Wiring.read({"wiring": "multilayer", "reads": sites, "predicts": sites}, "test")
    return ImportedCoder(WiredCoder(wiring, one.wired.coder, one.wired.normaliser), one.about)


EXPORTS: dict[str, ImportedCoder] = {
    "rows": foreign(random_coder("topk", **NO_BIAS), normaliser=STANDARDISE),
    "raw": foreign(random_coder("topk", **NO_BIAS)),
    "layers": several(foreign(random_coder("topk", **NO_BIAS), normaliser=STANDARDISE)),
    "folded": foreign(fold_norm(random_coder("topk", **NO_BIAS), UNIT), normaliser=STANDARDISE),
    "norm": foreign(random_coder("topk", selection="decoder_norm", **NO_BIAS)),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What huggingface_hub's mixin loads from every exported coder."""
    peers_python()
    root = tmp_path_factory.mktemp("exported")
    save_rows(root)
    for name, one in EXPORTS.items():
        FORMAT.write(one, root / name)
    run_in_peers(LOAD, root)
    return torch.load(root / "answers.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """What huggingface_hub's mixin saves, and the results of the saved model."""
    peers_python()
    root = tmp_path_factory.mktemp("saved")
    save_rows(root)
    run_in_peers(SAVE, root, D, F, K)
    run_in_peers(LOAD, root)
    return root, torch.load(root / "answers.pt")


@pytest.mark.parametrize("name", EXPORTS)
def test_the_hubs_mixin_reads_what_we_write(name: str, exported: dict[str, Tensor]) -> None:
    assert_near(exported[name], reconstruct(EXPORTS[name], rows())[1])


@pytest.mark.parametrize("name", ["raw", "rows", "one"])
def test_we_read_what_the_hubs_mixin_saves(name: str, saved: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder = saved[0] / name
    assert FORMAT.detect(folder)
    found = FORMAT.read(folder, ImportOptions())
    assert_near(reconstruct(found, rows())[1], saved[1][name])
    FORMAT.write(found, tmp_path / "again")
    first, again = (safetensors.torch.load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert_equal(again, first)


def save(folder: Path, prefix: str = "", more: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A folder in the published layout, with random weights; F = 40, D = 12."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(6)
    shapes = {"encoder.weight": (F, D), "decoder.weight": (D, F), "pre_encoder_bias": (D,)}
    tensors = {prefix + name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors | (more or {}), folder / "model.safetensors")
    config = {"n_inputs": D, "n_latents": F, "k": K, "dead_steps_threshold": 76, "dead_threshold": 1e-3, "auxk": 256}
    config = {key: value for key, value in {**config, "standardize": True, **changes}.items() if value != "gone"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def oracle(folder: Path, x: Tensor, *, standardise: bool) -> Tensor:
    """The published arithmetic in float64, top-k before ReLU, undone by the standard deviation alone."""
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    s = {name.removeprefix("autoencoder."): tensor.double() for name, tensor in stored.items()}
    x = x.double()
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    inside = (x - mean) / (std + 1e-5) if standardise else x
    h = (inside - s["pre_encoder_bias"]) @ s["encoder.weight"].T
    kept = h.argsort(dim=1, descending=True)[:, :K]
    codes = torch.zeros_like(h).scatter(1, kept, h.gather(1, kept).clamp_min(0))
    y_hat = codes @ s["decoder.weight"].T + s["pre_encoder_bias"]
    return y_hat * std + mean if standardise else y_hat


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("prefix", ["", "autoencoder."])
def test_in_float64_and_back(standardise: bool, prefix: str, tmp_path: Path) -> None:
    """In a "-tfm" repository the file also contains the language model, and sizes have other keys."""
    if prefix:
        sizes = {"n_inputs": "gone", "n_latents": "gone", "num_layers": 3, "model_name": "EleutherAI/pythia-70m"}
        more = {"transformer.model.embed_in.weight": torch.zeros(7, 3), "autoencoder.last_nonzero": torch.zeros(F)}
        folder = save(tmp_path / "first", prefix, more, standardize=standardise, **sizes)
    else:
        folder = save(tmp_path / "first", standardize=standardise)
    found = FORMAT.read(folder, AT_RESID)
    assert_near(reconstruct(found, rows())[1], oracle(folder, rows(), standardise=standardise))
    through_a_run(folder, "mlsae", tmp_path, ImportOptions(reads=RESID, model="someone/unknown"))
    first = safetensors.torch.load_file(folder / "model.safetensors")
    wanted = {f"{prefix}{name}": name for name in ("encoder.weight", "decoder.weight", "pre_encoder_bias")}
    again = safetensors.torch.load_file(tmp_path / "again" / "model.safetensors")
    assert_equal(again, {name: first[theirs] for theirs, name in wanted.items()})


def test_small_rows_too(tmp_path: Path) -> None:
    """Rows of standard deviation 0.15, of which the 1e-5 that only the way in adds is 6e-5."""
    folder = save(tmp_path / "first")
    x = rows(size=0.1)
    assert_near(reconstruct(FORMAT.read(folder, AT_RESID), x)[1], oracle(folder, x, standardise=True))


def test_all_layers_are_one_coder(tmp_path: Path) -> None:
    folder = save(tmp_path / "all", layers=[0, 1, 4], model_name="EleutherAI/pythia-70m")
    found = FORMAT.read(folder, ImportOptions())
    assert found.wired.wiring.wiring == "multilayer"
    assert [str(site) for site in found.wired.wiring.reads] == ["L00.resid_post", "L01.resid_post", "L04.resid_post"]
    assert found.about["model"] == "EleutherAI/pythia-70m"
    FORMAT.write(found, tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["layers"] == [0, 1, 4]
    assert [entry["hf_hook_name"] for entry in config["panscope"]["reads"]] == [
        f"gpt_neox.layers.{layer}.output" for layer in (0, 1, 4)
    ]
    assert FORMAT.read(tmp_path / "again", ImportOptions()).wired.wiring == found.wired.wiring
    assert FORMAT.read(folder, AT_RESID).wired.wiring.reads == (RESID,)
    assert FORMAT.read(save(tmp_path / "one", layers=[2]), ImportOptions()).wired.wiring.reads == (
        Site(2, "resid_post"),
    )
    none = save(tmp_path / "none")
    with pytest.raises(UserError, match="does not state the site"):
        FORMAT.read(none, ImportOptions())
    sites = tuple(Site(layer, "resid_post") for layer in (0, 1, 4))
    assert FORMAT.read(none, ImportOptions(reads=sites)).wired.wiring == found.wired.wiring
    with pytest.raises(UserError, match=r"predicts L03\.resid_post, so it cannot read several"):
        FORMAT.read(none, ImportOptions(reads=sites, predicts=RESID))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"k": F + 1}, "above the width"),
        ({"k": "gone"}, "'k' is missing"),
        ({"n_latents": F + 1}, "41 latents"),
        ({"n_inputs": D + 1}, "width 13"),
        ({"n_latents": "gone", "expansion_factor": 7}, "84 latents"),
        ({"lens": True}, "lens"),
        ({"tuned_lens": True}, "lens"),
        ({"layers": [1, -1]}, r"layers are \[1, -1\]"),
        ({"layers": [1, 1]}, "name each site once"),
    ],
)
def test_what_does_not_fit_is_a_sentence(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "a", **changes)
    with pytest.raises(UserError, match=words):
        FORMAT.read(folder, ImportOptions() if "layers" in changes else AT_RESID)


@pytest.mark.parametrize("name", ["encoder_lens.0.weight", "autoencoder.decoder_lens.0.weight", "lens.3.weight"])
def test_lenses_are_refused_and_not_left_out(name: str, tmp_path: Path) -> None:
    prefix = "autoencoder." if name.startswith("autoencoder.") else ""
    with pytest.raises(UserError, match="lens"):
        FORMAT.read(save(tmp_path / "a", prefix, {name: torch.eye(D)}), AT_RESID)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (foreign(random_coder("topk", pre_encoder_bias=True)), "an encoder bias"),
        (foreign(random_coder("topk")), "an encoder bias"),
        (foreign(random_coder("relu", **NO_BIAS)), "'relu'"),
        (foreign(random_coder("topk", **NO_BIAS), Site(3, "mlp_out")), "L03.mlp_out"),
        (foreign(random_coder("topk", **NO_BIAS), MLP_IN, MLP_OUT), "transcoder"),
        (
            foreign(random_coder("topk", **NO_BIAS), normaliser=Normaliser(kind="token_norm", scale_in=1, scale_out=1)),
            "token_norm",
        ),
    ],
)
def test_what_there_is_no_place_for_is_refused(one: ImportedCoder, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        FORMAT.write(one, tmp_path / "a")
    assert not (tmp_path / "a").exists()
