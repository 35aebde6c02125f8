"""Panscope's side of `train_vs_sparsify`: `panscope train` on a suite file, its pace read from its own train.jsonl.

Run as `python -m benchmarks.train_panscope TASK KERNELS`, it prints the windows as JSON. The coders are given
sparsify's task: TopK by value, a unit decoder, FVU, Adam. A bucket of shuffled rows holds one window, so that each
window has its share of the language model's passes.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from panscope.cli.train import Train
from rich.console import Console

from benchmarks.train_task import RATE, SITES, Task, Window
from panscope import __version__
from panscope.config import write_toml
from panscope.runs.run import Run
from panscope.storage.atomic import write_text
from panscope.storage.json_lines import JsonLines

VERSION = __version__


def run(task: Task, kernels: str, folder: Path) -> list[Window]:
    """Train in `folder`; the windows."""
    suite = folder / "suite.toml"
    write_text(suite, write_toml(suite_tables(task, kernels)))
    out = folder / "run"
    Train(suite=str(suite), out=out).run(Console(stderr=True))
    return windows(JsonLines(Run(out).train_log).read())


def suite_tables(task: Task, kernels: str) -> dict[str, Any]:
    """The suite file."""
    coders = {
        "sites": list(SITES),
        "layers": "all",
        "recipe": "llama_scope",
        "precision": "float32",
        "pre_encoder_bias": True,
        "width": task.width,
        "sparsity": task.k,
        "sparsity_from": task.k,
        "selection": "value",
        "decoder_norm": "unit",
        "loss": "fvu",
        "learning_rate": RATE,
        "convert_to": "none",
    }
    return {
        "name": "benchmark",
        "tokens": task.steps * task.batch,
        "model": {"path": task.model, "device": "cpu", "dtype": "float32"},
        "data": {"text": list(task.text), "packing": "stream", "context": task.context},
        "activations": {"buffer_rows": task.window * task.batch},
        "train": {
            "batch": task.batch,
            "log_every": task.window,
            "checkpoint_every": task.steps,
            "kernels": kernels,
        },
        "eval": {"tokens": 2 * task.context},
        "coders": [coders],
    }


def windows(log: list[dict[str, Any]]) -> list[Window]:
    """From the lines of train.jsonl, of which each coder has the same."""
    lines = [line for line in log if line["coder"] == log[0]["coder"]]
    rows = [line["rows"] - before for line, before in zip(lines, [0, *(line["rows"] for line in lines)], strict=False)]
    return [Window(n, n / line["rows_per_second"]) for n, line in zip(rows, lines, strict=True)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = run(Task.read(sys.argv[1]), sys.argv[2], Path(place))
    Console(width=100_000).print(json.dumps([dataclasses.asdict(window) for window in found]), highlight=False)
