"""OpenAI's .pt files. The tool is on no package index, so its computation is implemented here in float64.

Shape letters: B rows, D width, F latents, K codes a row.
"""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.formats import FORMATS, ImportedCoder, ImportOptions
from panscope.publishing.find_coders import find
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
    through_a_run,
)

FORMAT = FORMATS["openai"]
WEIGHTS = ("pre_bias", "latent_bias", "encoder.weight", "decoder.weight")
TOPK = {"activation": "TopK", "activation_state_dict": OrderedDict(k=K, postact_fn="ReLU")}
RELU = {"activation": "ReLU", "activation_state_dict": OrderedDict()}
EXPORTS: dict[str, ImportedCoder] = {
    "relu": foreign(random_coder("relu")),
    "relu_pre": foreign(random_coder("relu", pre_encoder_bias=True)),
    "topk": foreign(random_coder("topk"), normaliser=STANDARDISE),
    "topk_pre": foreign(random_coder("topk", pre_encoder_bias=True), normaliser=STANDARDISE),
    "topk_norm": foreign(random_coder("topk", selection="decoder_norm"), normaliser=STANDARDISE),
}


def state(**changes: Any) -> dict[str, Any]:
    """A random state dict in the tool's layout."""
    generator = torch.Generator().manual_seed(8)
    shapes = {"pre_bias": (D,), "latent_bias": (F,), "encoder.weight": (F, D), "decoder.weight": (D, F)}
    made: dict[str, Any] = OrderedDict(
        (name, torch.randn(shape, generator=generator) * 0.5) for name, shape in shapes.items()
    )
    made["stats_last_nonzero"] = torch.zeros(F, dtype=torch.int64)
    made["latents_activation_frequency"] = torch.ones(F)
    made["latents_mean_square"] = torch.zeros(F)
    made.update(changes)
    return made


def save(file: Path, saved: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, file)
    return file


def oracle(saved: dict[str, Any], x: Tensor) -> Tensor:
    """The tool's forward pass: TopK alone is of standardised rows, and k are taken before the ReLU."""
    s = {name: saved[name].double() for name in WEIGHTS}
    x = x.double()
    mean, std, is_topk = x.mean(1, keepdim=True), x.std(1, keepdim=True), saved.get("activation") == "TopK"
    inside = (x - mean) / (std + 1e-5) if is_topk else x
    h = (inside - s["pre_bias"]) @ s["encoder.weight"].T + s["latent_bias"]
    if is_topk:
        kept = h.argsort(dim=1, descending=True)[:, : saved["activation_state_dict"]["k"]]
        h = torch.full_like(h, -1.0).scatter(1, kept, h.gather(1, kept))
    y_hat = h.clamp_min(0) @ s["decoder.weight"].T + s["pre_bias"]
    return y_hat * std + mean if is_topk else y_hat


@pytest.mark.parametrize("name", EXPORTS)
def test_what_we_write_computes_the_same(name: str, tmp_path: Path) -> None:
    files = FORMAT.write(EXPORTS[name], tmp_path / "a")
    assert [file.name for file in files] == ["3.pt", "3.json"]
    written = torch.load(files[0], weights_only=True)
    assert list(written) == [*WEIGHTS[:2], *list(state())[4:], *WEIGHTS[2:], "activation", "activation_state_dict"]
    assert written["stats_last_nonzero"].dtype == torch.int64
    assert_near(reconstruct(EXPORTS[name], rows())[1], oracle(written, rows()))


@pytest.mark.parametrize("activation", [TOPK, RELU, {}], ids=["topk", "relu", "unsaid"])
def test_in_float64_and_back(activation: dict[str, Any], tmp_path: Path) -> None:
    saved = state(**activation)
    found = FORMAT.read(save(tmp_path / "first" / "3.pt", saved), AT_RESID)
    assert_near(reconstruct(found, rows())[1], oracle(saved, rows()))
    assert found.wired.normaliser.kind == ("standardise" if activation is TOPK else "none")
    asked = ImportOptions(reads=RESID, model="someone/unknown")
    folder = through_a_run(tmp_path / "first" / "3.pt", "openai", tmp_path, asked)
    again = torch.load(folder / "3.pt", weights_only=True)
    assert_equal({name: again[name] for name in WEIGHTS}, {name: saved[name] for name in WEIGHTS})
    assert again["activation"] == ("TopK" if activation is TOPK else "ReLU")
    assert again["activation_state_dict"] == ({"k": K, "postact_fn": "ReLU"} if activation is TOPK else {})


@pytest.mark.parametrize(
    ("place", "site"),
    [
        ("resid_post_mlp_v5_32k/autoencoders/8.pt", "L08.resid_post"),
        ("resid_delta_mlp/autoencoders/11.pt", "L11.mlp_out"),
        ("resid_delta_attn_v5_128k/autoencoders/0.pt", "L00.attn_out"),
        ("resid_post_attn_v5_32k/autoencoders/8.pt", None),  # between attention and MLP: no site of ours
        ("mlp_post_act/autoencoders/8.pt", None),
        ("resid_post_mlp_v5_32k/autoencoders/eight.pt", None),
        ("8.pt", None),
    ],
)
def test_the_published_layout_says_the_site(place: str, site: str | None, tmp_path: Path) -> None:
    file = save(tmp_path / place, state())
    assert FORMAT.detect(file) == FORMAT.detect(file.parent) == file.stem.isdigit()
    if site is None:
        with pytest.raises(UserError, match="site"):
            FORMAT.read(file, ImportOptions())
    else:
        found = FORMAT.read(file, ImportOptions())
        assert found.wired.wiring.reads == (Site.parse(site),)
        assert found.about["model"] == "openai-community/gpt2"
    assert FORMAT.read(file.parent, AT_RESID).wired.wiring.reads == (RESID,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": "Identity"}, "'Identity'"),
        ({"activation": "JumpReLU"}, "'JumpReLU'"),
        ({"activation": 3}, "expected 'ReLU'"),
        ({**TOPK, "activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "TopK with Identity"),
        ({**TOPK, "activation_state_dict": {"k": F + 1, "postact_fn": "ReLU"}}, "above the width"),
        ({**TOPK, "activation_state_dict": {}}, "--k"),
        ({**TOPK, "activation_state_dict": "none"}, "--k"),
        ({"pre_bias": torch.zeros(D + 1)}, "has shape"),
        ({"surprise": torch.zeros(D)}, "surprise"),
        ({"latent_bias": torch.full((F,), torch.inf)}, "infinity"),
    ],
)
def test_what_does_not_fit_is_a_sentence(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        FORMAT.read(save(tmp_path / "3.pt", state(**changes)), AT_RESID)


def test_a_training_folder_of_sparsify_is_not_ours(tmp_path: Path) -> None:
    """It has .pt files at its root and its coders in folders below; a file of any name is read if it is said to be."""
    states = ("state", "optimizer_0", "lr_scheduler_0", "rank_0_state")
    for name in states:
        file = save(tmp_path / "run" / f"{name}.pt", state())
        assert not FORMAT.detect(file)
    assert not FORMAT.detect(tmp_path / "run")
    one = foreign(random_coder("topk"))
    FORMATS["sparsify"].write(one, tmp_path / "run" / "layers.3")
    assert [found.format.name for found in find(tmp_path / "run")] == ["sparsify"]
    assert [found.format.name for found in find(tmp_path / "run" / "state.pt", "openai")] == ["openai"]


def test_several_files_are_not_one_coder(tmp_path: Path) -> None:
    for layer in range(2):
        save(tmp_path / f"{layer}.pt", state())
    assert not FORMAT.detect(tmp_path)
    with pytest.raises(UserError, match="exactly one"):
        FORMAT.read(tmp_path, AT_RESID)


def test_names_and_origin_are_beside_the_weights(tmp_path: Path) -> None:
    FORMAT.write(foreign(random_coder("relu"), model="gpt2", note="from a test"), tmp_path / "a")
    said = json.loads((tmp_path / "a" / "3.json").read_text())
    assert (said["hook_name"], said["hf_hook_name"]) == ("blocks.3.hook_resid_post", "transformer.h.3.output")
    assert said["panscope"]["about"]["note"] == "from a test"


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (foreign(random_coder("topk")), "'topk' on raw rows"),
        (foreign(random_coder("relu"), normaliser=STANDARDISE), "'relu' on rows normalised"),
        (foreign(random_coder("jumprelu")), "'jumprelu'"),
        (foreign(random_coder("relu"), MLP_IN, MLP_OUT), "transcoder"),
        (foreign(random_coder("relu", skip=True)), "skip"),
    ],
)
def test_what_there_is_no_place_for_is_refused(one: ImportedCoder, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        FORMAT.write(one, tmp_path / "a")
    assert not (tmp_path / "a").exists()
