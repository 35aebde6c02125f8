"""The training step against its peers: what one costs, on the same rows, in the same process, in turn.

Run from the repository's root: python -m benchmarks.step, with the peers of benchmarks/peers.txt installed.

One step is forward, loss, backward, Adam and constraints on B rows in memory, through each tool's own training code:
the modules step_panscope, step_saelens, step_sparsify and step_dictionary_learning say how. Of a peer's settings the
fastest counts. Contestants of a case are all built first and then step in turn (step_race). Beside them run the
machine's ceilings (step_ceilings); what each takes beyond weights and moments is measured in processes of their own
afterwards (step_memory). Every result is a line of JSON with the machine and the versions in it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console

from benchmarks import machine, step_contestants
from benchmarks.step_case import CASES, Case
from benchmarks.step_ceilings import ceilings
from benchmarks.step_contestants import Contestant
from benchmarks.step_memory import beyond_bytes
from benchmarks.step_race import Step, Timing, race
from benchmarks.step_rows import make_rows
from benchmarks.step_table import table, title
from panscope.storage.json_lines import JsonLines
from panscope.types import UserError


@dataclass(frozen=True)
class Options:
    """The training step against its peers."""

    cases: tuple[str, ...] = CASES
    """ARCHITECTURE:BxDxF@ACTIVE, one after another; architectures are topk, jumprelu and relu."""
    tools: tuple[str, ...] = tuple(step_contestants.MODULES)
    """Who takes part."""
    without: tuple[str, ...] = ()
    """Contestants left out, by name, such as "saelens compiled"."""
    rounds: int = 8
    """Turns of each contestant, and clean steps that its median needs at least."""
    memory: bool = True
    """Measure memory too, in a process for each contestant."""
    label: str = ""
    """A word on this run, kept with its results."""
    out: Path = Path("benchmarks/results/step.jsonl")
    """Results are appended."""


def main(options: Options) -> None:
    """Compare, record and print, case by case."""
    console, results = Console(width=160), JsonLines(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case in [Case.parse(text) for text in options.cases]:
        lines = _compared(case, options, console)
        results.append(lines)
        console.print(title(lines), highlight=False, soft_wrap=True)
        console.print(table(lines))


def _compared(case: Case, options: Options, console: Console) -> list[dict[str, Any]]:
    """The lines of one case."""
    taking_part = [name for name in step_contestants.names(case, options.tools) if name not in options.without]
    if not taking_part:
        raise UserError(f"case {case}: nobody takes part; name other --tools")
    console.print(f"{case}: {', '.join(taking_part)}", highlight=False)
    lines = _timed(case, taking_part, options, console)
    for line in lines:
        if options.memory and line["tool"]:
            line["beyond_mb"] = beyond_bytes(case, line["contestant"]) / 1e6
    return lines


def _timed(case: Case, taking_part: list[str], options: Options, console: Console) -> list[dict[str, Any]]:
    batches = make_rows(case)
    contestants = {name: step_contestants.build(case, name, batches) for name in taking_part}
    before = {name: contestant.l0(batches[0]) for name, contestant in contestants.items()}
    steps: dict[str, Step] = {name: contestant.step for name, contestant in contestants.items()}
    timings = race(
        steps | ceilings(case, batches), batches, options.rounds, lambda text: console.print(f"  {text}", style="dim")
    )
    setting = _setting(case, options)
    return [
        setting | _line(name, timing, contestants.get(name)) | _l0(before.get(name), contestants.get(name), batches[0])
        for name, timing in timings.items()
    ]


def _setting(case: Case, options: Options) -> dict[str, Any]:
    """What all lines of a case share."""
    facts = machine.facts() | {"cores": os.cpu_count()}
    return {"case": str(case), "label": options.label, "date": time.strftime("%F"), "machine": facts}


def _line(name: str, timing: Timing, contestant: Contestant | None) -> dict[str, Any]:
    """The times of a contestant; of a ceiling, which is no tool's, where there is none."""
    tool = step_contestants.tool_of(name) if contestant else ""
    counted = sorted(1000 * seconds for seconds in timing.counted())
    return {
        "contestant": name,
        "tool": tool,
        "version": step_contestants.module(tool).VERSION if tool else torch.__version__,
        "ms": timing.median_ms(),
        "fastest_ms": counted[0],
        "slowest_ms": counted[-1],
        "steps": len(counted),
        "clean": timing.enough(),
        "held_mb": contestant.held_bytes() / 1e6 if contestant else None,
        "beyond_mb": None,
    }


def _l0(before: float | None, contestant: Contestant | None, rows: torch.Tensor) -> dict[str, float | None]:
    """Active latents before the first step and after the last; the mean of the two is shown."""
    if contestant is None or before is None:
        return {"l0": None, "l0_before": None, "l0_after": None}
    after = contestant.l0(rows)
    return {"l0": (before + after) / 2, "l0_before": before, "l0_after": after}


if __name__ == "__main__":
    main(tyro.cli(Options))
