"""The speed of `panscope train` on the task of `benchmarks.train.vs_sparsify`, which runs this module.

    python -m benchmarks.train.panscope_trainer TASK KERNELS

prints the windows as JSON, from the rates in the run's train.jsonl. The coders are those that sparsify trains: TopK by
value, a unit-norm decoder, the FVU as loss, Adam. A bucket of shuffled rows holds one window, so that each window
includes its share of the language model's passes.
"""

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from benchmarks.support.command_line import run_command
from benchmarks.support.processes import print_json
from benchmarks.train.task import RATE, SITES, Task, Window
from panscope import api
from panscope.listeners.terminal import TerminalListener
from panscope.runs.run import Run
from panscope.storage.json_lines import JsonLines


@dataclass(frozen=True)
class Options:
    """The speed of `panscope train` on one task."""

    task: tyro.conf.Positional[str]
    """The task as JSON, as `Task.written` gives it."""
    kernels: tyro.conf.Positional[str]
    """`train.kernels` of the suite file."""


def main(options: Options) -> None:
    """Train in a temporary folder and print the windows."""
    with tempfile.TemporaryDirectory() as folder:
        found = run(Task.read(options.task), options.kernels, Path(folder))
    print_json([dataclasses.asdict(window) for window in found])


def run(task: Task, kernels: str, folder: Path) -> list[Window]:
    """Train in `folder` and return the windows."""
    out = folder / "run"
    api.train(suite_tables(task, kernels), out, listeners=[TerminalListener(Console(stderr=True))], quiet=True)
    return windows(JsonLines(Run(out).train_log).read())


def suite_tables(task: Task, kernels: str) -> dict[str, Any]:
    """The tables of the suite file."""
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
    """The windows by the lines of train.jsonl, which have the same rates for every coder."""
    lines = [line for line in log if line["coder"] == log[0]["coder"]]
    rows = [line["rows"] - before for line, before in zip(lines, [0, *(line["rows"] for line in lines)], strict=False)]
    return [Window(n, n / line["rows_per_second"]) for n, line in zip(rows, lines, strict=True)]


if __name__ == "__main__":
    run_command(main, Options)
