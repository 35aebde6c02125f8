"""The cost of one training step, against SAELens, sparsify and dictionary_learning on the same rows in one process.

    python -m benchmarks.step.race

needs the libraries of benchmarks/peers.txt; `--tools panscope` needs none of them.

One step is forward, loss, backward, Adam and constraints on B rows in memory, each tool by its own training code
(`*_step.py` say which). Of a peer's settings the fastest counts. The contestants of a case are all built first and then
timed in turns (turns.py), together with the machine's limits (ceilings.py); afterwards their memory beyond parameters
and moments is measured, each in its own process (memory.py). Every result is a line of JSON with the machine and the
versions in it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.step import contestants
from benchmarks.step.case import CASES, Case
from benchmarks.step.ceilings import ceilings
from benchmarks.step.contestants import Contestant
from benchmarks.step.memory import beyond_bytes
from benchmarks.step.rows import make_rows
from benchmarks.step.table import table, title
from benchmarks.step.turns import Step, Timing, time_in_turns
from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.tables import wide_console
from panscope.storage.json_lines import JsonLines
from panscope.types import UserError


@dataclass(frozen=True)
class Options:
    """The cost of one training step, against other libraries."""

    cases: tuple[str, ...] = CASES
    """Cases to compare, ARCHITECTURE:BxDxF@ACTIVE; architectures are topk, jumprelu and relu."""
    tools: tuple[str, ...] = tuple(contestants.MODULES)
    """Tools to compare."""
    without: tuple[str, ...] = ()
    """Names of contestants to leave out, such as "saelens compiled"."""
    rounds: int = 8
    """Turns of each contestant, and the clean steps that its median needs."""
    memory: bool = True
    """Measure memory too, each contestant in its own process (Linux only)."""
    label: str = ""
    """A note that is written with the results."""
    out: Path = Path("benchmarks/results/step.jsonl")
    """Results are appended to this file."""


def main(options: Options) -> None:
    """Compare, record and print, case by case."""
    console, results = wide_console(), JsonLines(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case in [Case.parse(text) for text in options.cases]:
        lines = _compared(case, options, console)
        results.append(lines)
        console.print(title(lines), highlight=False, soft_wrap=True)
        console.print(table(lines))


def _compared(case: Case, options: Options, console: Console) -> list[dict[str, Any]]:
    """The result lines of one case."""
    names = [name for name in contestants.names(case, options.tools) if name not in options.without]
    if not names:
        raise UserError(f"case {case}: no contestant is left; give other --tools or fewer --without")
    console.print(f"{case}: {', '.join(names)}", highlight=False)
    lines = _timed(case, names, options, console)
    for line in lines:
        if options.memory and line["tool"]:
            line["beyond_mb"] = beyond_bytes(case, line["contestant"]) / 1e6
    return lines


def _timed(case: Case, names: list[str], options: Options, console: Console) -> list[dict[str, Any]]:
    batches = make_rows(case)
    built = {name: contestants.build(case, name, batches) for name in names}
    before = {name: contestant.l0(batches[0]) for name, contestant in built.items()}
    steps: dict[str, Step] = {name: contestant.step for name, contestant in built.items()}
    timings = time_in_turns(
        steps | ceilings(case, batches), batches, options.rounds, lambda text: console.print(f"  {text}", style="dim")
    )
    setting = {
        "case": str(case),
        "label": options.label,
        "date": time.strftime("%F"),
        "machine": machine.facts(),
    }
    return [
        setting | _line(name, timing, built.get(name)) | _l0(before.get(name), built.get(name), batches[0])
        for name, timing in timings.items()
    ]


def _line(name: str, timing: Timing, contestant: Contestant | None) -> dict[str, Any]:
    """The times of one contestant, or of one of the machine's limits where `contestant` is None."""
    tool = contestants.tool_of(name) if contestant else ""
    counted = sorted(1000 * seconds for seconds in timing.counted())
    return {
        "contestant": name,
        "tool": tool,
        "version": contestants.module(tool).VERSION if tool else torch.__version__,
        "ms": timing.median_ms(),
        "fastest_ms": counted[0],
        "slowest_ms": counted[-1],
        "steps": len(counted),
        "clean": timing.enough(),
        "held_mb": contestant.held_bytes() / 1e6 if contestant else None,
        "beyond_mb": None,
    }


def _l0(before: float | None, contestant: Contestant | None, rows: torch.Tensor) -> dict[str, float | None]:
    """Active latents before the first step and after the last, and the mean of the two, which the table shows."""
    if contestant is None or before is None:
        return {"l0": None, "l0_before": None, "l0_after": None}
    after = contestant.l0(rows)
    return {"l0": (before + after) / 2, "l0_before": before, "l0_after": after}


if __name__ == "__main__":
    run_command(main, Options)
