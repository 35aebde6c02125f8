"""Runs so small that hundreds can be damaged: a tiny language model, two tiny coders, eight steps."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope.coders import files as store
from panscope.planning.plan import SuiteConfig
from panscope.runs import stages
from panscope.runs.run import Run
from panscope.storage.locks import locked
from panscope.training.checkpoint import Checkpoints

STEPS = 8
CALIBRATION_ROWS = 64
"""In place of 32,768, which would take longer than all the rest."""


def write_text(path: Path) -> None:
    """Sixty one-line stories."""
    path.write_text("".join(f'{{"text": "A dog had {i} balls. He liked to play with them."}}\n' for i in range(60)))


def small_suite(shared: Path, text: Path) -> SuiteConfig:
    """Eight steps with a checkpoint at every second, three of them to come after a stop at step 4."""
    fields: dict[str, Any] = {
        "tokens": STEPS * 32,
        "model": {"path": str(shared / "models" / "stories260K"), "device": "cpu"},
        "data": {"text": [str(text)], "context": 16, "held_out": 0.3},
        "activations": {"norm_rows": 64, "buffer_rows": 128},
        "train": {"batch": 32, "log_every": 1, "checkpoint_every": 2},
        "eval": {"tokens": 100},
        "coders": [
            {"width": 8, "sparsity": 2, "layers": 0, "recipe": "llama_scope"},
            {"width": 12, "sparsity": 0.05, "layers": 1, "recipe": "gemma_scope"},
        ],
    }
    return SuiteConfig.read(fields, "test")


def seen(run: Path, *, coders: bool = True, checkpoints: bool = True) -> dict[str, Any]:
    """All that Panscope ever reads of a run folder, by the calls with which it does."""
    folder = Run.open(run)
    with locked(folder.path):
        found: dict[str, Any] = {"suite": folder.suite.model_dump(mode="json")}
    if folder.status().get("stage") == "done" or folder.coder_names():
        found["results"] = stages.stored_results(folder)
    found["log"] = folder.read_log()
    for name in folder.coder_names() if coders else []:
        wired, trained = store.load(folder.coder_folder(name)), store.load_as_trained(folder.coder_folder(name))
        found[name] = [wired.wiring, wired.normaliser, wired.coder.config, wired.coder.tensors(), trained.config]
        found[f"{name} as trained"] = trained.tensors()
    if checkpoints:
        kept = Checkpoints(folder.checkpoints)
        found |= {f"checkpoint {step}": kept.load(step) for step in kept.steps()}
    return found


def timeless(values: dict[str, Any]) -> dict[str, Any]:
    """What was `seen`, without what depends on how fast the machine was: rates, and the length of the log."""
    kept = {name: value for name, value in values.items() if not name.startswith("checkpoint ")}
    for name in values.keys() - kept.keys():
        kept[name] = {part: state for part, state in values[name].items() if part != "run"}
    kept["log"] = [{key: item for key, item in line.items() if key != "rows_per_second"} for line in values["log"]]
    return kept


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same to the last bit of every tensor."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(one, other) for one, other in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
