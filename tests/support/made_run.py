"""A finished run folder made without any training: coders of many kinds with random weights, and what was measured."""

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers

from panscope import builtin, coders
from panscope.coders import files as store
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.runs.run import Run
from panscope.storage.sealed import write_sealed, write_sealed_toml

D, F = 12, 24
LEARNING_RATES = {"topk": 0.007}
FOR_SAELENS = {
    "L00R-2x-jumprelu-l1e-3": ("jumprelu", ["L00.resid_post"], {}),
    "L00R-2x-topk-k4": ("topk", ["L00.resid_post"], {"sparsity": 4}),
    "L01A-2x-relu-l1e-3": ("relu", ["L01.attn_out"], {}),
    "L01M-2x-gated-l1e-3": ("gated", ["L01.mlp_out"], {}),
    "L01M-2x-topk-k4-centred": ("topk", ["L01.mlp_out"], {"sparsity": 4, "pre_encoder_bias": True}),
    "L01R-2x-standardised": ("topk", ["L01.resid_post"], {"sparsity": 4}),
    "L01TC-2x-jumprelu-l1e-3": ("jumprelu", ["L01.mlp_in_no_gain", "L01.mlp_out"], {"skip": True}),
    "L01Z-2x-jumprelu-l1e-3": ("jumprelu", ["L01.attn_z"], {}),
}
"""Architecture, site (or the two of a transcoder), fields."""
NOT_FOR_SAELENS = "all-CC-R-2x-topk-k4"
RECIPES = {"jumprelu": "gemma_scope", "topk": "panscope", "relu": "anthropic_relu", "gated": "saebench"}
NOT_MEASURED = "L01Z-2x-jumprelu-l1e-3"


def write_made_run(folder: Path, private: Path) -> Path:
    """The run, whose model and text are at `private` places of this machine."""
    write_model(private / "lm")
    run = Run.create(folder)
    for number, (name, (architecture, sites, fields)) in enumerate(FOR_SAELENS.items()):
        kind = "transcoder" if len(sites) > 1 else "sae"
        wiring = Wiring.read({"wiring": kind, "reads": sites[:1], "predicts": sites[-1:]}, name)
        if kind == "transcoder":
            fields = fields | {"encoder_init": "own"}
        _write(run, name, WiredCoder(wiring, made(architecture, fields, number), _normaliser(name)), private)
    sites = ["L00.resid_post", "L01.resid_post"]
    crosscoder = made("topk", {"sparsity": 4, "d_in": 2 * D, "d_out": 2 * D}, 99)
    wiring = Wiring.read({"wiring": "crosscoder", "reads": sites, "predicts": sites}, "")
    _write(run, NOT_FOR_SAELENS, WiredCoder(wiring, crosscoder), private)
    text = [str(private / "stories.jsonl")]
    suite: dict[str, Any] = {"name": "made", "tokens": 5000, "model": {"path": str(private / "lm")}}
    suite |= {"data": {"text": text, "context": 64, "packing": "documents"}, "train": {"batch": 256}}
    suite["coders"] = [{"architecture": name, "recipe": recipe} for name, recipe in RECIPES.items()]
    write_sealed_toml(run.suite_file, suite)
    write_sealed(run.status_file, {"stage": "done", "since": "2026-11-21T23:59:59+0000"})
    return run.path


def write_model(folder: Path) -> None:
    """A language model of two layers with random weights, as wide as the coders, with the demo model's tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=D,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin.DEMO_MODEL / file, folder / file)


def _normaliser(name: str) -> Normaliser:
    return Normaliser(kind="standardise", scale_in=1, scale_out=1) if "standardised" in name else UNIT


def made(architecture: str, fields: dict[str, Any], seed: int) -> coders.Coder:
    """A coder with random weights that fires on about half of what it could."""
    every = {"architecture": architecture, "d_in": D, "d_out": D, "width": F, "sparsity": 1e-3, "decoder_norm": "free"}
    coder = coders.build(coders.config_type(architecture).read(every | fields, "made"))
    generator = torch.Generator().manual_seed(seed)
    draws = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in coder.tensors().items()}
    draws |= {name: draws[name].abs() for name in coder.positive}
    return coder.load_tensors(draws)


IDENTITY = {
    "model": {
        "weights": "0123456789abcdef",
        "configuration": {"model_type": "llama"},
        "tokenizer": "fedcba9876543210",
        "transformers": "5.0.0",
    },
    "text": ["stories.jsonl 1234 bytes xxh3 0123456789abcdef"],
}


def _write(run: Run, name: str, wired: WiredCoder, private: Path) -> None:
    provenance = {
        "name": name,
        "normaliser": {"kind": "sqrt_d", "scale_in": 1.5, "scale_out": 1.5, "parts": []},
        "model": {"path": str(private / "lm"), "revision": None, "dtype": "float32", "attention": None},
        "identity": IDENTITY,
        "tokens": 4864,
        "schedule": {
            "learning_rate": LEARNING_RATES.get(wired.coder.config.architecture, 0.005),
            "normaliser": "sqrt_d",
        },
        "activations": {"source": "store", "store": str(private / "store"), "identity": "1"},
    }
    store.save(run.coder_folder(name), wired, wired.coder, provenance)
    if name != NOT_MEASURED:
        write_sealed(run.coder_folder(name) / "eval.json", _numbers(name, wired, private))


def _numbers(name: str, wired: WiredCoder, private: Path) -> dict[str, Any]:
    """Other numbers for each coder, with all their digits."""
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    fvu, delta, recovered, dead = torch.rand(4, generator=draw).tolist()
    numbers: dict[str, Any] = {"tokens": 1234, "fvu": fvu, "delta_loss": delta, "loss_recovered": recovered}
    numbers |= {"dead_fraction": dead, "l0": 1 + 9 * fvu, "intervals": {"fvu": [fvu - 0.01, fvu + 0.02]}}
    subsets = {str(private / place / "stories.jsonl"): {"fvu": fvu} for place in ("a", "b")}
    on = {"text": [str(private / "stories.jsonl")], "part": "held_out", "context": 64, "model": str(private / "lm")}
    on |= {"packing": "documents", "label": "held_out"}
    sites = {str(site): dict(numbers) for site in wired.wiring.predicts}
    several = {"sites": sites} if len(sites) > 1 else {}
    return numbers | several | {"coder": name, "evaluated_on": on, "subsets": subsets, "files": {"x.parquet": "1"}}
