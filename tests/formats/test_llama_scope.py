"""Llama Scope v1: the folding compared with its formula in float64, and with SAELens' loader where that is correct.

Shape letters: D input width, E output width, F latents, B rows.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.types import Site, UserError
from tests.support.made_coders import D_IN, D_OUT, PREDICTS, WIDTH, MakeCoder, reconstructed
from tests.support.peers import run_in_peers

LLAMA_SCOPE = FORMATS["llama_scope"]
SAE = {"hook_point_in": "blocks.15.hook_resid_post", "hook_point_out": "blocks.15.hook_resid_post"}
TRANSCODER = {"hook_point_in": "blocks.15.ln2.hook_normalized", "hook_point_out": "blocks.15.hook_mlp_out"}


def hyperparams(**changes: Any) -> dict[str, Any]:
    return {
        **SAE,
        "d_model": D_IN,
        "d_sae": WIDTH,
        "expansion_factor": 8,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.4,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 6.0, "out": 2.5},
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "top_k": 5,
        "use_glu_encoder": False,
        "strict_loading": True,
        **changes,
    }


def publish(folder: Path, config: dict[str, Any], d_out: int = D_IN, dtype: torch.dtype = torch.float32) -> Path:
    """A folder in the published layout, with random weights."""
    draw = torch.Generator().manual_seed(5)
    shapes = {
        "encoder.weight": (WIDTH, D_IN),
        "encoder.bias": (WIDTH,),
        "decoder.weight": (d_out, WIDTH),
        "decoder.bias": (d_out,),
    }
    weights = {name: (0.3 * torch.randn(shape, generator=draw)).to(dtype) for name, shape in shapes.items()}
    if not config["use_decoder_bias"]:
        del weights["decoder.bias"]
    (folder / "checkpoints").mkdir(parents=True)
    save_file(weights, folder / "checkpoints/final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(config))
    (folder / "lm_config.json").write_text(json.dumps({"model_name": "meta-llama/Llama-3.1-8B"}))
    return folder


def wanted(folder: Path, x: Tensor) -> Tensor:
    """[B, E] in float64, unfolded: scale the input, encode, gate, decode, scale back.

    The gate compares the code in raw units, with its decoder vector in raw units, with the threshold.
    """
    config = json.loads((folder / "hyperparams.json").read_text())
    w = {name: tensor.double() for name, tensor in load_file(folder / "checkpoints/final.safetensors").items()}
    norms = config["dataset_average_activation_norm"]
    decoder = w["decoder.weight"].T
    b_dec = w.get("decoder.bias", torch.zeros(decoder.shape[1], dtype=torch.float64))
    s_in, s_out = math.sqrt(x.shape[1]) / norms["in"], math.sqrt(decoder.shape[1]) / norms["out"]
    inner = x.double() * s_in
    if config["apply_decoder_bias_to_pre_encoder"]:
        inner = inner - b_dec
    pre = inner @ w["encoder.weight"].T + w["encoder.bias"]
    score = pre / s_in
    if config["sparsity_include_decoder_norm"]:
        score = score * (decoder * s_in / s_out).norm(dim=1)
    if config["act_fn"] == "topk" and not config["jump_relu_threshold"]:
        kept = torch.zeros_like(score).scatter(1, score.topk(config["top_k"], dim=1).indices, 1.0).bool()
    else:
        kept = score > config["jump_relu_threshold"]
    return ((torch.relu(pre) * kept) @ decoder + b_dec) / s_out


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "published": ({}, D_IN),
    "one_norm": ({"dataset_average_activation_norm": {"in": 6, "out": 6}}, D_IN),
    "without_decoder_norm": ({"sparsity_include_decoder_norm": False}, D_IN),
    "topk_with_threshold": ({"act_fn": "topk"}, D_IN),
    "topk": ({"act_fn": "topk", "jump_relu_threshold": 0}, D_IN),
    "without_bias": ({"use_decoder_bias": False}, D_IN),
    "pre_bias": (
        {"apply_decoder_bias_to_pre_encoder": True, "dataset_average_activation_norm": {"in": 6, "out": 6}},
        D_IN,
    ),
    "transcoder": (TRANSCODER, D_IN),
    "transcoder_of_two_widths": (TRANSCODER, D_OUT),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fold_is_the_formula(name: str, rows: Tensor, tmp_path: Path) -> None:
    changes, d_out = CASES[name]
    folder = publish(tmp_path / name, hyperparams(**changes), d_out)
    assert LLAMA_SCOPE.detect(folder)
    foreign = LLAMA_SCOPE.read(folder, ImportOptions())
    x = 6 * rows
    torch.testing.assert_close(reconstructed(foreign.wired, x).double(), wanted(folder, x), rtol=1e-5, atol=1e-5)
    active = foreign.wired.encode(x).dense().gt(0).double().mean()
    assert 0.02 < active < 0.9
    is_transcoder = name.startswith("transcoder")
    assert str(foreign.wired.wiring.reads[0]) == ("L15.mlp_in_no_gain" if is_transcoder else "L15.resid_post")
    assert str(foreign.wired.wiring.predicts[0]) == ("L15.mlp_out" if is_transcoder else "L15.resid_post")
    assert foreign.about["model"] == "meta-llama/Llama-3.1-8B"


def test_unit_vectors_where_the_threshold_meets_norms(rows: Tensor, tmp_path: Path) -> None:
    coder = LLAMA_SCOPE.read(publish(tmp_path / "coder", hyperparams()), ImportOptions()).wired.coder
    torch.testing.assert_close(coder.W_dec.norm(dim=1), torch.ones(WIDTH), rtol=1e-6, atol=1e-6)
    assert coder.tensors()["threshold"].eq(torch.tensor(0.4)).all()


def test_half_precision_is_folded_in_float64(rows: Tensor, tmp_path: Path) -> None:
    folder = publish(tmp_path / "coder", hyperparams(), dtype=torch.bfloat16)
    ours = reconstructed(LLAMA_SCOPE.read(folder, ImportOptions()).wired, rows)
    torch.testing.assert_close(ours.double(), wanted(folder, rows), rtol=1e-5, atol=1e-5)


LOAD = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.saes import sae as saes
root = Path(sys.argv[1])
loaders.hf_hub_download = lambda repo_id, filename, subfolder=None, **options: str(root / (subfolder or "") / filename)
saes.get_norm_scaling_factor = lambda release, sae_id: float(sys.argv[2])
x = load_file(root / "x.safetensors")["x"]
found = {}
for folder in sys.argv[3:]:
    sae = SAE.from_pretrained("mine/mine", folder, converter=loaders.llama_scope_sae_huggingface_loader)
    with torch.no_grad():
        found[folder] = sae(x).contiguous()
    print(sae.cfg.metadata.hook_name)
save_file(found, root / "found.safetensors")
"""


def loaded_by_saelens(root: Path, x: Tensor, scale: float, *folders: str) -> dict[str, Tensor]:
    save_file({"x": x}, root / "x.safetensors")
    run_in_peers(LOAD, root, scale, *folders)
    return load_file(root / "found.safetensors")


def test_saelens_agrees_where_its_loader_is_right(rows: Tensor, tmp_path: Path) -> None:
    """SAELens' folding is complete with a single norm and without decoder norms, but not with two norms."""
    right = {"sparsity_include_decoder_norm": False, "dataset_average_activation_norm": {"in": 6.0, "out": 6.0}}
    publish(tmp_path / "right", hyperparams(**right))
    publish(tmp_path / "wrong", hyperparams())
    x = 6 * rows
    found = loaded_by_saelens(tmp_path, x, math.sqrt(D_IN) / 6, "right", "wrong")
    ours = {name: reconstructed(LLAMA_SCOPE.read(tmp_path / name, ImportOptions()).wired, x) for name in found}
    torch.testing.assert_close(found["right"], ours["right"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found["wrong"], ours["wrong"], rtol=0.1, atol=0.1)
    torch.testing.assert_close(ours["wrong"].double(), wanted(tmp_path / "wrong", x), rtol=1e-5, atol=1e-5)


def test_what_we_write_saelens_loads(make_coder: MakeCoder, rows: Tensor, tmp_path: Path) -> None:
    publish(tmp_path / "published", hyperparams(**TRANSCODER))
    made = {
        "batchtopk": make_coder("batchtopk", pre_encoder_bias=True, site=Site(3, "resid_post")),
        "matryoshka": make_coder("matryoshka"),
        "transcoder": make_coder("batchtopk", predicts=PREDICTS),
        "relu": make_coder("relu"),
        "again": LLAMA_SCOPE.read(tmp_path / "published", ImportOptions()).wired,
    }
    for name, wired in made.items():
        files = LLAMA_SCOPE.write(ImportedCoder(wired, {"model": "meta-llama/Llama-3.1-8B"}), tmp_path / name)
        assert all(path.is_file() for path in files)
    found = loaded_by_saelens(tmp_path, 4 * rows, 1.0, *made)
    for name, wired in made.items():
        ours = reconstructed(wired, 4 * rows)
        torch.testing.assert_close(found[name], ours, rtol=1e-5, atol=1e-5)
        again = LLAMA_SCOPE.read(tmp_path / name, ImportOptions())
        assert again.wired.wiring == wired.wiring
        torch.testing.assert_close(reconstructed(again.wired, 4 * rows), ours, rtol=1e-5, atol=1e-5)
        LLAMA_SCOPE.write(again, tmp_path / f"{name}.again")
        before, after = (load_file(tmp_path / n / "checkpoints/final.safetensors") for n in (name, f"{name}.again"))
        assert all(before[key].equal(after[key]) for key in before)
    config = json.loads((tmp_path / "transcoder/hyperparams.json").read_text())
    assert config["hf_hook_name_out"] == "model.layers.3.mlp.output"
    assert config["hook_point_out"] == "blocks.3.hook_mlp_out"


def test_what_it_has_no_place_for(make_coder: MakeCoder, tmp_path: Path) -> None:
    for wired, word in (
        (make_coder("jumprelu"), "one threshold"),
        (make_coder("topk"), "'topk'"),
        (make_coder("relu", skip=True), "skip"),
        (make_coder("relu", predicts=PREDICTS, d_out=D_OUT), "single width"),
        (make_coder("relu", normaliser="token_norm"), "'token_norm'"),
    ):
        with pytest.raises(UserError, match=word):
            LLAMA_SCOPE.write(ImportedCoder(wired), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"use_glu_encoder": True}, "use_glu_encoder"),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"dataset_average_activation_norm": {"in": 6.0}}, "two numbers"),
        ({"dataset_average_activation_norm": {"in": 6.0, "out": 0}}, "two numbers"),
        ({"dataset_average_activation_norm": 6.0}, "two numbers"),
        ({"jump_relu_threshold": "high"}, "jump_relu_threshold"),
        ({"jump_relu_threshold": -1}, "jump_relu_threshold"),
        ({"act_fn": "tanh"}, "'tanh'"),
        ({"act_fn": "topk", "jump_relu_threshold": 0, "top_k": None}, "--k"),
        ({"d_model": 4096}, "d_model"),
        ({"sparsity_include_decoder_norm": "yes"}, "sparsity_include_decoder_norm"),
        ({"hook_point_in": "blocks.3.hook_mlp_in"}, "hook_mlp_in"),
        ({"hook_point_out": "hook_embed"}, "hook_embed"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias"),
    ],
)
def test_what_is_not_ours_is_refused(changes: dict[str, Any], word: str, tmp_path: Path) -> None:
    folder = publish(tmp_path / "coder", hyperparams(**changes))
    with pytest.raises(UserError, match=word) as error:
        LLAMA_SCOPE.read(folder, ImportOptions())
    assert str(folder) in str(error.value)
