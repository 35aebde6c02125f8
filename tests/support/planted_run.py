"""A finished run folder whose coders have decoders of our choice: what `panscope geometry` finds there is known."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope import coders
from panscope.coders import files as store
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.planning.plan import SuiteConfig
from panscope.runs.run import Run
from panscope.storage.sealed import write_sealed_toml
from panscope.types import Site

SITE = Site(1, "resid_post")


def planted_run(path: Path, model: str = "panscope://demo") -> Run:
    """A run without a coder."""
    run = Run.create(path)
    fields: dict[str, Any] = {"tokens": 64, "model": {"path": model, "device": "cpu"}, "data": {"text": ["none.txt"]}}
    suite = SuiteConfig.read(fields | {"coders": [{"width": 8, "sparsity": 2}]}, "test")
    write_sealed_toml(run.suite_file, suite.model_dump(mode="json"))
    return run


def plant(
    run: Run, name: str, rows: Tensor, *, wiring: str = "sae", sites: tuple[Site, ...] = (SITE,), **fields: Any
) -> None:
    """Save a coder with the decoder vectors `rows` [F, D]."""
    settings = {"architecture": "topk", "sparsity": 2, "decoder_norm": "free"} | fields
    settings |= {"d_in": rows.shape[1], "d_out": rows.shape[1], "width": len(rows)}
    coder = coders.build(coders.config_type(settings["architecture"]).read(settings, name))
    with torch.no_grad():
        coder.W_dec.copy_(rows)
        coder.W_enc.copy_(rows)
    wired = WiredCoder(Wiring.read({"wiring": wiring, "reads": sites, "predicts": sites}, name), coder)
    store.save(run.coder_folder(name), wired, coder, {})
