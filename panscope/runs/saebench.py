"""SAEBench's JSON files of a run that was measured by SAEBench's definitions (`panscope eval --saebench`)."""

import math
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from torch import Tensor

from panscope.coders.wiring import WiredCoder
from panscope.formats.saebench import CoreAbout, core_file_name, core_output, write_core
from panscope.formats.site_names import lens_name
from panscope.runs.finished_coder import suffix_of
from panscope.runs.run import Run

TAKEN = {
    "saebench_ce_clean": "ce_clean",
    "saebench_ce_spliced": "ce_spliced",
    "saebench_ce_zero_ablated": "ce_zero_ablated",
    "saebench_kl": "kl",
    "saebench_kl_zero_ablated": "kl_zero_ablated",
}
"""Numbers that follow SAEBench's definition where an evaluation replaces and judges as SAEBench does."""


def write_saebench(run: Run, out: Path, label: str) -> list[Path]:
    """Write one file a coder into `out`, from the evaluation `label`; coders of one site only.

    Its numbers are those of several sites for no coder that SAEBench knows, so others are left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for coder in run.coders():
        found = coder.evaluation(label)
        if found is None or len(coder.wiring.predicts) > 1:
            continue
        fields = found.content
        about = _about(run, coder.name, coder.load(), fields["evaluated_on"])
        latents = _columns(coder.folder / f"latents{suffix_of(label)}.parquet")
        numbers = fields | {theirs: fields[ours] for theirs, ours in TAKEN.items()}
        path = out / core_file_name(about)
        write_core(path, core_output(numbers, latents, about))
        written.append(path)
    return written


def _columns(path: Path) -> dict[str, Tensor]:
    """The columns [F] of a table of latents; NaN where it has nothing, such as the mean of one that never fired."""
    columns = pyarrow.parquet.read_table(path).to_pydict()
    return {
        name: torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
        for name, values in columns.items()
    }


def _about(run: Run, name: str, wired: WiredCoder, on: dict[str, Any]) -> CoreAbout:
    return CoreAbout(
        release=run.path.resolve().name,
        coder=name,
        model=on["model"],
        dtype=on["dtype"],
        dataset=" ".join(on["text"]),
        context=on["context"],
        batch=on["sequences"],
        exclude_special_tokens=on["splice"] == "content",
        eval_id=str(uuid.uuid4()),
        milliseconds=int(time.time() * 1000),
        sae=_sae(wired, on),
    )


def _sae(wired: WiredCoder, on: dict[str, Any]) -> dict[str, Any]:
    """The coder's configuration in SAELens' words."""
    config, (reads,), (predicts,) = wired.coder.config, wired.wiring.reads, wired.wiring.predicts
    return {
        "architecture": config.architecture,
        "d_in": config.d_in,
        "d_sae": config.width,
        "d_out": config.d_out,
        "dtype": on["coder_dtype"],
        "model_name": on["model"],
        "hook_layer": reads.layer,
        "hook_name": lens_name(reads),
        "hook_name_out": lens_name(predicts),
        "context_size": on["context"],
        "apply_b_dec_to_input": config.pre_encoder_bias,
        "normalize_activations": "none",
    }
