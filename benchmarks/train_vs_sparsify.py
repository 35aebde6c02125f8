"""`panscope train` against sparsify's own trainer, end to end: tokens a second, language model included.

Run from the repository's root, with the peers of benchmarks/peers.txt installed:
python -m benchmarks.train_vs_sparsify --model FOLDER --text FILE ...

Same model, text, sites, number and width of coders, sequence length and tokens a step (train_task); train_panscope and
train_sparsify say how each is driven. Every run is a process of its own, and the two take turns. Every result is a line
of JSON with the machine in it.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.other_load import OtherLoad
from benchmarks.train_task import Task, Window, tokens_per_second
from panscope.storage.json_lines import JsonLines
from panscope.types import UserError

_REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Options:
    """`panscope train` against sparsify's trainer."""

    task: tyro.conf.OmitArgPrefixes[Task]
    kernels: tuple[str, ...] = ("auto",)
    """What Panscope trains with; a run for each."""
    repeats: int = 3
    """Runs of each."""
    label: str = ""
    """A word on this run, kept with its results."""
    out: Path = Path("benchmarks/results/train_vs_sparsify.jsonl")
    """Results are appended."""


def main(options: Options) -> None:
    """Run in turn, record and print."""
    console, results, lines = Console(width=160), JsonLines(options.out), []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    commands = {f"panscope {kernels}": ("benchmarks.train_panscope", kernels) for kernels in options.kernels}
    commands["sparsify"] = ("benchmarks.train_sparsify",)
    for _ in range(options.repeats):
        for trainer, command in commands.items():
            line = _setting(options) | {"trainer": trainer} | _measured(options.task, *command)
            results.append([line])
            lines.append(line)
            console.print(f"{trainer}: {line['tokens_per_second']:,.0f} tokens/s", highlight=False)
    console.print(table(lines))


def _setting(options: Options) -> dict[str, Any]:
    facts = machine.facts() | {"cores": os.cpu_count()}
    named = asdict(options.task) | options.task.names()
    return named | {"label": options.label, "date": time.strftime("%F"), "machine": facts}


def _measured(task: Task, module: str, *arguments: str) -> dict[str, Any]:
    """One run in a process of its own; raises UserError with what it said if it fails."""
    load = OtherLoad()
    done = subprocess.run(
        [sys.executable, "-m", module, task.written(), *arguments],
        cwd=_REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"{module} failed:\n{done.stderr}")
    windows = [Window(**window) for window in json.loads(done.stdout.splitlines()[-1])]
    return {
        "tokens_per_second": tokens_per_second(windows),
        "windows": [asdict(window) for window in windows],
        "others": load.share(),
    }


def table(lines: list[dict[str, Any]]) -> Table:
    """A row for each trainer: the median of its runs, and how many times sparsify's that is; Markdown."""
    shown = Table(box=box.MARKDOWN)
    for name in ("", "tokens/s", "lowest", "highest", "x sparsify", "others' load, most"):
        shown.add_column(name, no_wrap=True)
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
    main(tyro.cli(Options))
