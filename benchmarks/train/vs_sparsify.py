"""Training speed of `panscope train` against sparsify's own trainer: tokens a second, language model included.

    python -m benchmarks.train.vs_sparsify --model FOLDER --text FILE ...

needs the libraries of benchmarks/peers.txt. Both have the same model, text, sites, number and width of coders, sequence
length and tokens a step (task.py); panscope_trainer.py and sparsify_trainer.py run one of them each. Every run is a
process of its own, and the two alternate. Every result is a line of JSON with the machine in it.
"""

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.other_load import OtherLoad
from benchmarks.support.processes import run_module
from benchmarks.support.tables import markdown_table, wide_console
from benchmarks.train.task import Task, Window, tokens_per_second
from panscope.storage.json_lines import JsonLines


@dataclass(frozen=True)
class Options:
    """Training speed of `panscope train` against sparsify's trainer."""

    task: tyro.conf.OmitArgPrefixes[Task]
    kernels: tuple[str, ...] = ("auto",)
    """The kernels that Panscope trains with; a run for each."""
    repeats: int = 3
    """Runs of each trainer."""
    label: str = ""
    """A note that is written with the results."""
    out: Path = Path("benchmarks/results/train_vs_sparsify.jsonl")
    """Results are appended to this file."""


def main(options: Options) -> None:
    """Run the trainers in turns, record and print."""
    console, results, lines = wide_console(), JsonLines(options.out), []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    commands: dict[str, tuple[str, ...]] = {
        f"panscope {kernels}": ("benchmarks.train.panscope_trainer", kernels) for kernels in options.kernels
    }
    commands["sparsify"] = ("benchmarks.train.sparsify_trainer",)
    for _ in range(options.repeats):
        for trainer, (module, *arguments) in commands.items():
            line = _setting(options) | {"trainer": trainer} | _measured(options.task, module, *arguments)
            results.append([line])
            lines.append(line)
            console.print(f"{trainer}: {line['tokens_per_second']:,.0f} tokens/s", highlight=False)
    console.print(table(lines))


def _setting(options: Options) -> dict[str, Any]:
    named = asdict(options.task) | options.task.names()
    return named | {"label": options.label, "date": time.strftime("%F"), "machine": machine.facts()}


def _measured(task: Task, module: str, *arguments: str) -> dict[str, Any]:
    """One run of a trainer in a process of its own; raises UserError with its error output if it fails."""
    load = OtherLoad()
    windows = [Window(**window) for window in run_module(module, task.written(), *arguments)]
    return {
        "tokens_per_second": tokens_per_second(windows),
        "windows": [asdict(window) for window in windows],
        "others": load.share(),
    }


def table(lines: list[dict[str, Any]]) -> Table:
    """A row for each trainer: the median of its runs, and its ratio to sparsify's median."""
    shown = markdown_table(("", "tokens/s", "lowest", "highest", "x sparsify", "largest load of others"))
    rates: dict[str, list[float]] = {}
    for line in lines:
        rates.setdefault(line["trainer"], []).append(line["tokens_per_second"])
    base = statistics.median(rates["sparsify"])
    for trainer, found in sorted(rates.items(), key=lambda item: -statistics.median(item[1])):
        median = statistics.median(found)
        loads = [line["others"] for line in lines if line["trainer"] == trainer and line["others"] is not None]
        numbers = [f"{rate:,.0f}" for rate in (median, min(found), max(found))]
        shown.add_row(trainer, *numbers, f"{median / base:.2f}", f"{max(loads):.0%}" if loads else "-")
    return shown


if __name__ == "__main__":
    run_command(main, Options)
