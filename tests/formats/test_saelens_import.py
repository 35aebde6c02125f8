"""Files saved by SAELens can be imported and give the reconstruction of its own loader, in float32."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.types import Site, UserError
from tests.support.made_coders import MakeCoder, reconstructed
from tests.support.making import through_a_run
from tests.support.peers import run_in_peers

SAELENS = FORMATS["saelens"]
SAVE = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from sae_lens import SAE
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import SAEMetadata

root, D, F, E = Path(sys.argv[1]), 12, 40, 10
x = 4 * torch.randn(64, D, generator=torch.Generator().manual_seed(3))
found = {"x": x}

def fill(sae):
    torch.manual_seed(len(found))
    for name, tensor in sae.state_dict().items():
        draw = torch.randn(tensor.shape) * (0.3 if tensor.dim() == 2 else 0.1)
        tensor.copy_(draw.abs() + 0.1 if "threshold" in name else draw)
    return sae

def note(name, sae):
    z = sae.cfg.reshape_activations == "hook_z"
    rows = x.view(len(x), 2, -1) if z else x
    with torch.no_grad():
        found[name] = sae(rows).reshape(len(x), -1).contiguous()

def save(name, architecture, hook="blocks.5.hook_resid_post", out=None, **fields):
    metadata = SAEMetadata(model_name="gemma-2-2b", hook_name=hook, hook_name_out=out, context_size=64)
    sae_class, config_class = get_sae_class(architecture)
    if "transcoder" in architecture:
        fields |= {"d_out": E, "apply_b_dec_to_input": False}
    sae = fill(sae_class(config_class(d_in=D, d_sae=F, metadata=metadata, **fields)))
    sae.save_model(root / name)
    note(name, SAE.load_from_disk(root / name, dtype="float32"))

for flag in (True, False):
    for architecture in ("standard", "jumprelu", "gated"):
        save(f"{architecture}.{flag}", architecture, apply_b_dec_to_input=flag)
    save(f"topk.{flag}", "topk", k=5, apply_b_dec_to_input=flag)
save("topk.by_norm", "topk", k=5, rescale_acts_by_decoder_norm=True)
for kind in ("layer_norm", "constant_norm_rescale"):
    for architecture in ("standard", "jumprelu", "gated"):
        save(f"{architecture}.{kind}", architecture, normalize_activations=kind)
save("bfloat16", "jumprelu", dtype="bfloat16")
save("float16", "standard", dtype="float16")
save("float64", "standard", dtype="float64")
save("of_heads", "jumprelu", hook="blocks.5.attn.hook_z", reshape_activations="hook_z")
for kind in ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"):
    save(kind, kind, "blocks.5.ln2.hook_normalized", "blocks.5.hook_mlp_out")

def train(name, architecture, keep=False, **fields):
    sae_class, config_class = get_sae_training_class(architecture)
    sae = fill(sae_class(config_class(d_in=D, d_sae=F, **fields)))
    sae.cfg.metadata.hook_name = "blocks.5.hook_mlp_out"
    sae.save_inference_model(root / f"{name}.published")
    note(f"{name}.published", SAE.load_from_disk(root / f"{name}.published"))
    sae.save_model(root / f"{name}.checkpoint")
    found[f"{name}.checkpoint"] = found[f"{name}.published"].clone()

train("topk_trained", "topk", k=5)
train("batchtopk_trained", "batchtopk", k=5)
train("batchtopk_by_value", "batchtopk", k=5, rescale_acts_by_decoder_norm=False)
train("matryoshka_trained", "matryoshka_batchtopk", k=5, matryoshka_widths=[10, 40])
train("jumprelu_trained", "jumprelu")
train("gated_trained", "gated")
train("standard_trained", "standard")
save_file(found, root / "found.safetensors")
print(" ".join(name for name in found if name != "x"))
"""
SAVED = [
    *(f"{name}.{flag}" for name in ("standard", "jumprelu", "gated", "topk") for flag in (True, False)),
    *(
        f"{name}.{kind}"
        for name in ("standard", "jumprelu", "gated")
        for kind in ("layer_norm", "constant_norm_rescale")
    ),
    *("topk.by_norm", "bfloat16", "float16", "float64", "of_heads"),
    *("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
    *(
        f"{name}.{stage}"
        for name in ("topk_trained", "batchtopk_trained", "batchtopk_by_value", "matryoshka_trained")
        for stage in ("published", "checkpoint")
    ),
    *(f"{name}_trained.{stage}" for name in ("jumprelu", "gated", "standard") for stage in ("published", "checkpoint")),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    root = tmp_path_factory.mktemp("saved")
    names = run_in_peers(SAVE, root).split()
    assert sorted(names) == sorted(SAVED)
    return root, load_file(root / "found.safetensors")


@pytest.mark.parametrize("name", SAVED)
def test_our_reconstruction_is_theirs(name: str, saved: tuple[Path, dict[str, Tensor]]) -> None:
    root, found = saved
    assert SAELENS.detect(root / name)
    foreign = SAELENS.read(root / name, ImportOptions())
    torch.testing.assert_close(reconstructed(foreign.wired, found["x"]), found[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SAVED if not name.startswith(("batchtopk", "matryoshka"))])
def test_import_then_export_gives_back_the_tensors(name: str, saved: Any, tmp_path: Path) -> None:
    before = load_file(saved[0] / name / "sae_weights.safetensors")
    asked = ImportOptions(reads=Site(5, "mlp_out") if name.endswith("checkpoint") else None, model="someone/unknown")
    out = through_a_run(saved[0] / name, "saelens", tmp_path, asked)
    after = load_file(out / "sae_weights.safetensors")
    assert before.keys() == after.keys()
    assert all(after[key].equal(tensor.float()) for key, tensor in before.items())


def test_the_sites_are_those_of_the_hooks(saved: Any) -> None:
    def wiring(name: str) -> tuple[str, str]:
        found = SAELENS.read(saved[0] / name, ImportOptions()).wired.wiring
        return str(found.reads[0]), str(found.predicts[0])

    assert wiring("standard.True") == ("L05.resid_post", "L05.resid_post")
    assert wiring("of_heads") == ("L05.attn_z", "L05.attn_z")
    assert wiring("skip_transcoder") == ("L05.mlp_in_no_gain", "L05.mlp_out")
    asked = ImportOptions(reads=Site(1, "mlp_in"), predicts=Site(1, "mlp_out"), model="mine")
    foreign = SAELENS.read(saved[0] / "skip_transcoder", asked)
    assert foreign.wired.wiring.reads == (Site(1, "mlp_in"),)
    assert foreign.about["model"] == "mine"
    assert foreign.about["metadata"]["context_size"] == 64


OLD = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
root = Path(sys.argv[1])
x = load_file(root / "x.safetensors")["x"]
with torch.no_grad():
    found = {name: SAE.load_from_disk(root / name)(x).contiguous() for name in ("relu", "topk")}
save_file(found, root / "found.safetensors")
"""


def test_folders_of_version_3_are_read_as_it_reads_them(make_coder: MakeCoder, rows: Tensor, tmp_path: Path) -> None:
    base = {"d_in": 12, "d_sae": 40, "dtype": "torch.float32", "device": "cpu", "normalize_activations": "none"}
    base |= {"model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre", "apply_b_dec_to_input": True}
    topk = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    for name, more in (("relu", {"activation_fn_str": "relu"}), ("topk", topk)):
        SAELENS.write(ImportedCoder(make_coder(name, pre_encoder_bias=True)), tmp_path / name)
        (tmp_path / name / "cfg.json").write_text(json.dumps(base | more))
    weights = tmp_path / "topk" / "sae_weights.safetensors"
    save_file(load_file(weights), weights)
    save_file({"x": rows}, tmp_path / "x.safetensors")
    run_in_peers(OLD, tmp_path)
    found = load_file(tmp_path / "found.safetensors")
    for name in ("relu", "topk"):
        foreign = SAELENS.read(tmp_path / name, ImportOptions())
        torch.testing.assert_close(reconstructed(foreign.wired, rows), found[name], rtol=1e-5, atol=1e-5)
        assert foreign.wired.wiring.reads == (Site(7, "resid_post"),)
        assert foreign.wired.coder.config.architecture == name


def test_the_decoder_bias_is_taken_off_unless_the_file_says_no(make_coder: MakeCoder, tmp_path: Path) -> None:
    SAELENS.write(ImportedCoder(make_coder("relu")), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config.pop("apply_b_dec_to_input") is False
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    assert SAELENS.read(tmp_path, ImportOptions()).wired.coder.config.pre_encoder_bias


def folder_of(make_coder: MakeCoder, path: Path, changes: dict[str, Any], architecture: str = "relu") -> Path:
    SAELENS.write(ImportedCoder(make_coder(architecture)), path)
    config = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(config | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architecture": "abstopk"}, "abstopk"),
        ({"architecture": ["standard"]}, "architecture"),
        ({"architecture": "jumprelu"}, "lacks threshold"),
        ({"architecture": "transcoder", "normalize_activations": "layer_norm"}, "transcoder"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"normalize_activations": "expected_average_only_in"}, "activation_scaler.json"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input"),
        ({"reshape_activations": "nonsense"}, "'nonsense'"),
        ({"reshape_activations": "hook_z"}, "reads L03.mlp_in"),
        ({"metadata": {}, "hook_name": "blocks.3.hook_mlp_out", "activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"metadata": {}, "hook_name": "blocks.3.hook_mlp_out", "activation_fn_str": "topk"}, "give --k"),
        ({"metadata": {"sae_lens_version": "6.0.0", "panscope": {"wiring": "multilayer", "reads": 3}}}, "reads is 3"),
        ({"metadata": {"sae_lens_version": "6.0.0", "panscope": {"wiring": "sae", "reads": [{}]}}}, "reads.0"),
        ({"d_sae": 10**12}, "d_sae"),
        ({"metadata": {"sae_lens_version": "6.0.0", "hook_name": "blocks.0.hook_mlp_in"}}, "hook_mlp_in"),
        ({"metadata": {"sae_lens_version": "6.0.0"}}, "does not state the site"),
        (
            {"metadata": {"sae_lens_version": "6.0.0", "hook_name": "blocks.0.attn.hook_z", "hook_head_index": 3}},
            "head",
        ),
    ],
)
def test_what_is_not_ours_is_refused(changes: dict[str, Any], word: str, make_coder: MakeCoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=word) as error:
        SAELENS.read(folder_of(make_coder, tmp_path / "coder", changes), ImportOptions())
    assert str(tmp_path / "coder") in str(error.value)
    assert "\n" not in str(error.value)


REFUSED = """
import sys
from sae_lens import SAE
for folder in sys.argv[1:]:
    try:
        SAE.load_from_disk(folder)
        print("loaded")
    except ValueError as error:
        print(str(error).split()[0])
"""
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")


def test_a_transcoder_that_takes_a_bias_off_its_input_is_refused_as_they_do(
    make_coder: MakeCoder, tmp_path: Path
) -> None:
    folders = []
    for name in TRANSCODERS:
        wired = make_coder(
            "jumprelu" if "jump" in name else "relu", predicts=Site(3, "mlp_out"), d_out=10, skip="skip" in name
        )
        for applies in (False, True, None):
            folder = tmp_path / f"{name}.{applies}"
            SAELENS.write(ImportedCoder(wired), folder)
            config = json.loads((folder / "cfg.json").read_text()) | {"apply_b_dec_to_input": applies}
            assert config["architecture"] == name
            (folder / "cfg.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
            folders.append(folder)
            if applies is False:
                assert not SAELENS.read(folder, ImportOptions()).wired.coder.config.pre_encoder_bias
            else:
                with pytest.raises(UserError, match=f"'{name}' subtracts no bias from its input"):
                    SAELENS.read(folder, ImportOptions())
    assert run_in_peers(REFUSED, *folders).split() == ["loaded", *["apply_b_dec_to_input"] * 2] * len(TRANSCODERS)


def test_several_sites_may_be_said_of_one_coder(make_coder: MakeCoder, tmp_path: Path) -> None:
    sites = (Site(0, "mlp_in"), Site(1, "mlp_in"))
    SAELENS.write(ImportedCoder(make_coder("relu")), tmp_path / "sae")
    assert SAELENS.read(tmp_path / "sae", ImportOptions(reads=sites)).wired.wiring.reads == sites
    SAELENS.write(ImportedCoder(make_coder("relu", predicts=Site(3, "mlp_out"))), tmp_path / "transcoder")
    with pytest.raises(UserError, match=r"predicts L03\.mlp_out, so it cannot read several"):
        SAELENS.read(tmp_path / "transcoder", ImportOptions(reads=sites))


def test_a_files_own_module_path_is_kept_where_the_family_is_unknown(make_coder: MakeCoder, tmp_path: Path) -> None:
    SAELENS.write(ImportedCoder(make_coder("relu", site=Site(5, "resid_post"))), tmp_path / "theirs")
    file = tmp_path / "theirs" / "cfg.json"
    config = json.loads(file.read_text())
    config["metadata"] |= {"panscope": None, "hf_hook_name": "decoder.blocks.5", "model_name": "someone/unknown"}
    file.write_text(json.dumps(config))
    asked = ImportOptions()
    for out in ("once", "twice"):
        folder = through_a_run(file.parent, "saelens", tmp_path / out, asked)
        said = json.loads((folder / "cfg.json").read_text())["metadata"]
        assert (said["hook_name"], said["hf_hook_name"]) == ("blocks.5.hook_resid_post", "decoder.blocks.5")
        file = folder / "cfg.json"
    elsewhere = through_a_run(file.parent, "saelens", tmp_path / "else", ImportOptions(reads=Site(4, "mlp_out")))
    assert json.loads((elsewhere / "cfg.json").read_text())["metadata"]["hf_hook_name"] is None


@pytest.mark.parametrize("k", [None, 0, -3, 2.5, 41, "many"])
def test_a_k_that_is_none_is_refused(k: object, make_coder: MakeCoder, tmp_path: Path) -> None:
    folder = folder_of(make_coder, tmp_path / "coder", {"k": k}, "topk")
    with pytest.raises(UserError, match=r"sparsity|k is|--k"):
        SAELENS.read(folder, ImportOptions())


def test_a_factor_beside_a_checkpoint_is_folded_in(make_coder: MakeCoder, rows: Tensor, tmp_path: Path) -> None:
    plain = make_coder("jumprelu", pre_encoder_bias=True)
    SAELENS.write(ImportedCoder(plain), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"normalize_activations": "expected_average_only_in"}))
    (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.25, "has_whitening": False}))
    scaled = SAELENS.read(tmp_path, ImportOptions()).wired
    torch.testing.assert_close(
        reconstructed(scaled, rows), reconstructed(plain, rows * 0.25) / 0.25, rtol=1e-5, atol=1e-5
    )
    codes, wanted = scaled.encode(rows).dense(), plain.encode(rows * 0.25).dense()
    torch.testing.assert_close(codes, wanted, rtol=1e-5, atol=1e-5)
