"""Coders on disk: what is read back computes the same, and damage is said in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders import files as store
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.normaliser import Normaliser, Part
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.storage.atomic import checksum
from panscope.storage.sealed import write_sealed
from panscope.storage.tensors import read_tensors, write_tensors
from panscope.types import Site, UserError

D, F = 5, 9
SPARSITY = {"relu": 0.3, "topk": 2, "batchtopk": 2, "matryoshka": 2, "jumprelu": 0.2, "gated": 0.2}
IN, OUT = Site(1, "mlp_in"), Site(1, "mlp_out")
SAE = Wiring(wiring="sae", reads=(OUT,), predicts=(OUT,))
TRANSCODER = Wiring(wiring="transcoder", reads=(IN,), predicts=(OUT,))
MULTILAYER = Wiring(wiring="multilayer", reads=(IN, OUT), predicts=(IN, OUT))
CROSSCODER = Wiring(wiring="crosscoder", reads=(IN, OUT), predicts=(IN, OUT))
STANDARDISE = Normaliser(kind="standardise", scale_in=1, scale_out=1)


def random_coder(architecture: str, d_out: int = D, **fields: Any) -> Coder:
    base = {"d_in": D, "d_out": d_out, "width": F, "sparsity": SPARSITY[architecture], "encoder_init": "own"}
    base |= {"prefixes": (0.5, 1.0)} if architecture == "matryoshka" else {}
    coder = coders.build(coders.config_type(architecture).read(base | fields, "test"))
    coder.initialise(torch.Generator().manual_seed(3))
    with torch.no_grad():
        coder.b_enc.uniform_(-0.2, 0.2)
        coder.b_dec.uniform_(-0.2, 0.2)
    return coder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved TopK coder."""
    coder = random_coder("topk")
    store.save(tmp_path / "coder", WiredCoder(SAE, coder), coder, {})
    return tmp_path / "coder"


def resealed(path: Path, changes: dict[str, Any]) -> None:
    """Change a config.json as only a program would: with a checksum that fits."""
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    write_sealed(path, config | changes)


def rewritten(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write other weights, with a checksum in config.json that fits."""
    write_tensors(path, tensors)
    config = path.with_name("config.json")
    checksums = json.loads(config.read_text())["xxh3"]
    resealed(config, {"xxh3": checksums | {path.name: checksum(path)}})


@pytest.mark.parametrize("architecture", coders.ARCHITECTURES)
@pytest.mark.parametrize("wiring", [SAE, TRANSCODER, MULTILAYER, CROSSCODER], ids=lambda wiring: wiring.wiring)
@pytest.mark.parametrize("normaliser", [UNIT, STANDARDISE], ids=lambda normaliser: normaliser.kind)
def test_a_coder_read_back_computes_the_same(
    tmp_path: Path, architecture: str, wiring: Wiring, normaliser: Normaliser
) -> None:
    transcoder = wiring is TRANSCODER
    coder = random_coder(architecture, d_out=D + 2 if transcoder else D, skip=transcoder)
    if isinstance(coder, BatchTopKCoder):
        coder.threshold.fill_(0.2)
    saved = WiredCoder(wiring, coder, normaliser)
    store.save(tmp_path / "coder", saved, coder, {"seed": 1})
    found = store.load(tmp_path / "coder")
    assert found.wiring == wiring
    assert found.normaliser == normaliser
    assert found.coder.config == coder.config
    assert type(found.coder) is type(coder)
    x = torch.randn(40, D, generator=torch.Generator().manual_seed(4))
    assert saved.encode(x).l0().sum() > 0
    assert found.encode(x).dense().equal(saved.encode(x).dense())
    assert found.decode(found.encode(x), x).equal(saved.decode(saved.encode(x), x))


def test_parts_of_a_normaliser_that_applies_come_back(tmp_path: Path) -> None:
    parts = (Part(width=2, scale=1), Part(width=3, scale=1))
    normaliser = Normaliser(kind="token_norm", scale_in=1, scale_out=1, parts=parts)
    coder = random_coder("topk")
    store.save(tmp_path, WiredCoder(CROSSCODER, coder, normaliser), coder, {})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format"] == 4
    assert config["applies"]["kind"] == "token_norm"
    assert config["applies"]["parts"] == [{"width": 2, "scale": 1}, {"width": 3, "scale": 1}]
    assert store.load(tmp_path).normaliser == normaliser


def test_a_coder_of_the_first_format_is_refused_by_name(folder: Path) -> None:
    """It had no `applies` and other wirings; reading it would have to guess."""
    path = folder / "config.json"
    resealed(path, {"format": 1})
    with pytest.raises(UserError, match="format 1, expected 4"):
        store.load(folder)


def test_a_coder_of_the_second_format_is_refused_by_name(folder: Path) -> None:
    """It had no checksums, so a damaged number could not be told from a good one."""
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("seal", "xxh3")}
    path.write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(UserError, match=r"config\.json' has format 2, expected 4") as caught:
        store.load(folder)
    assert "\n" not in str(caught.value)


def test_the_weights_as_trained_and_the_provenance_are_kept(tmp_path: Path) -> None:
    trained = random_coder("topk", selection="decoder_norm", decoder_norm="free")
    finished = random_coder("jumprelu")
    folder = tmp_path / "coder"
    store.save(folder, WiredCoder(SAE, finished), trained, {"normaliser": {"kind": "none"}, "tokens": 5})
    found = store.load_as_trained(folder).tensors()
    assert found.keys() == trained.tensors().keys()
    assert all(found[name].equal(tensor) for name, tensor in trained.tensors().items())
    config = json.loads((folder / "config.json").read_text())
    assert config["training"]["coder"]["selection"] == "decoder_norm"
    assert config["wiring"] == {"wiring": "sae", "reads": ["L01.mlp_out"], "predicts": ["L01.mlp_out"]}
    assert (config["normaliser"], config["tokens"]) == ({"kind": "none"}, 5)


def test_provenance_cannot_overwrite_what_describes_the_coder(tmp_path: Path) -> None:
    coder = random_coder("topk")
    with pytest.raises((ValueError, AssertionError)):
        store.save(tmp_path / "coder", WiredCoder(SAE, coder), coder, {"coder": "mine"})


def test_raw_rows_of_another_precision_are_taken() -> None:
    wired = WiredCoder(SAE, random_coder("topk"))
    x = torch.randn(4, D).bfloat16()
    assert wired.encode(x).values.equal(wired.encode(x.float()).values)


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_missing_or_cut_file_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name}.*damaged"):
        store.load(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}.*missing"):
        store.load(folder)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=99), "format 99, expected 4"),
        (lambda c: c.pop("format"), "format None"),
        (lambda c: c.pop("coder"), "coder"),
        (lambda c: c.pop("wiring"), "wiring"),
        (lambda c: c["coder"].pop("architecture"), "architecture"),
        (lambda c: c["coder"].update(architecture="tokp"), r"'tokp' is unknown.*topk"),
        (lambda c: c["coder"].update(widht=3), r"'widht' is unknown.*'width'"),
        (lambda c: c["wiring"].update(reads=["L01.mlp"]), "'mlp' is unknown"),
        (lambda c: c.update(coder=[]), "coder"),
        (lambda c: c.pop("applies"), "applies, training, xxh3 must be tables"),
        (lambda c: c.pop("xxh3"), "must be tables"),
        (lambda c: c["xxh3"].clear(), r"weights\.safetensors' is damaged"),
        (lambda c: c["applies"].update(kind="rms"), "kind is 'rms'"),
        (lambda c: c["applies"].update(scale_in=-1), "scale_in is -1"),
    ],
)
def test_a_config_that_is_wrong_is_explained(folder: Path, change: Change, message: str) -> None:
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    change(config)
    write_sealed(path, config)
    with pytest.raises(UserError, match=message) as caught:
        store.load(folder)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_no_table_is_explained(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json"):
        store.load(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("W_enc", torch.zeros(F, D + 1), r"'W_enc' has shape \(9, 6\), expected \(9, 5\)"),
        ("W_enc", torch.zeros(F, 1), r"'W_enc' has shape \(9, 1\)"),
        ("b_dec", torch.zeros(()), r"'b_dec' has shape \(\)"),
        ("b_enc", None, "'b_enc' has shape None"),
    ],
)
def test_weights_of_another_shape_are_explained(
    folder: Path, name: str, tensor: torch.Tensor | None, message: str
) -> None:
    path = folder / "weights.safetensors"
    tensors = read_tensors(path)
    del tensors[name]
    rewritten(path, tensors if tensor is None else tensors | {name: tensor})
    with pytest.raises(UserError, match=message):
        store.load(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    tensors = read_tensors(path)
    tensors["W_dec"][0, 0] = float("nan")
    rewritten(path, tensors)
    with pytest.raises(UserError, match="W_dec"):
        store.load(folder)


def test_a_threshold_below_zero_is_refused(tmp_path: Path) -> None:
    """Its codes would be negative, which no code may be."""
    coder = random_coder("jumprelu")
    store.save(tmp_path, WiredCoder(SAE, coder), coder, {})
    threshold = torch.full((F,), 0.1)
    threshold[4] = -0.1
    rewritten(tmp_path / "weights.safetensors", coder.tensors() | {"threshold": threshold})
    with pytest.raises(UserError, match="threshold"):
        store.load(tmp_path)
