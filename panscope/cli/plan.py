"""`panscope plan`: which coders a suite has and what they cost, before any weight is downloaded or trained."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from panscope.cli.cost_tables import Lines, choice_lines, compute_table, disk_lines, memory_lines, placement_lines
from panscope.cli.flags import flag
from panscope.cli.plan_tables import grouped, listed
from panscope.cli.suite_file import suite_file
from panscope.cli.units import in_counts
from panscope.config import read_toml
from panscope.cost.estimate import Cost, assumptions, cost
from panscope.cost.gpus import gpu_named
from panscope.lms.facts import facts_of
from panscope.plan.plan import SuiteConfig, plan
from panscope.plan.warnings import warn_large_penalty
from panscope.types import UserError

_WIDEST = 1000


@dataclass(frozen=True)
class PlanSuite:
    """Say exactly which coders a suite trains, and what that costs; no weights are read.

    For example
      panscope plan gemma-scope-2b                     every coder by kind, compute, memory, disk
      panscope plan suite.toml --gpu A100-80GB --gpus 8
    """

    suite: Annotated[str, tyro.conf.Positional, flag("SUITE")]
    """A suite file (.toml) or the name of a built-in suite."""
    gpu: str = "H100"
    """A100-40GB, A100-80GB, H100-SXM, H200, B200, L40S, RTX-4090, RTX-3090, V100-32GB, TPUv3; a beginning will do."""
    gpus: int = 1
    """How many of them."""
    coders: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List every coder by name."""
    days: float = 30.0
    """For how long activations would be kept, if they were stored."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        if self.gpus < 1:
            raise UserError(f"--gpus is {self.gpus}: give how many there are, at least 1")
        if not self.days > 0:
            raise UserError(f"--days is {self.days:g}: give a number of days above 0")
        gpu = gpu_named(self.gpu)
        suite = SuiteConfig.read(read_toml(suite_file(self.suite)), self.suite)
        facts = facts_of(suite.model)
        planned = plan(suite, facts, gpu.memory_bytes)
        for line in warn_large_penalty(planned):
            _say(console, line)
        _print_whole(console, listed(planned) if self.coders else grouped(planned))
        _print_costs(console, cost(planned, facts, gpu, self.gpus), self.days)
        return 0


def _print_whole(console: Console, table: Table) -> None:
    """A table, a line a row where the terminal is too narrow for its longest words: no name is cut in two."""
    needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table)
    table.width = None if needed.minimum < console.width else needed.maximum
    console.print(table, crop=False)


def _print_costs(console: Console, whole: Cost, days: float) -> None:
    planned, facts, gpu = whole.plan, whole.facts, whole.gpu
    _say(console, "")
    _say(
        console,
        f"{planned.suite.name} on {facts.name} ({facts.n_layers} layers, {in_counts(facts.parameters)} parameters): "
        f"{planned.steps:,} steps of {planned.batch:,} rows; {whole.gpus} x {gpu.name}, {gpu.memory_gb:g} GiB each",
    )
    _say(console, "")
    console.print(compute_table(whole))
    _section(console, "memory", memory_lines(whole))
    if whole.gpus > 1:
        _section(console, "one coder alone on all devices, from stored rows", placement_lines(whole))
    _section(console, "disk, if activations were stored", disk_lines(whole))
    _section(console, f"store or regenerate, in {gpu.name}-hours", choice_lines(whole, days))
    _say(console, "\nassumed")
    for sentence in assumptions(whole):
        _say(console, f"  - {sentence}")


def _section(console: Console, title: str, lines: Lines) -> None:
    _say(console, f"\n{title}")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in lines:
        table.add_row(f"  {name}", text)
    console.print(table, markup=False, highlight=False)


def _say(console: Console, text: str) -> None:
    """One line as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
