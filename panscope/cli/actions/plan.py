"""`panscope plan`: which coders a suite has and what they cost, before any weight is downloaded or trained."""

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from panscope.cli.cost_tables import Lines, choice_lines, compute_table, disk_lines, memory_lines, placement_lines
from panscope.cli.flags.plan import PlanSuite
from panscope.cli.listening import say
from panscope.cli.next_step import next_step, planned_cost
from panscope.cli.plan_tables import grouped, listed
from panscope.cli.units import in_bytes, in_counts
from panscope.cost.estimate import Cost, assumptions
from panscope.cost.this_machine import time_here
from panscope.listeners.progress import duration
from panscope.lms.load import device_of
from panscope.planning.warnings import warn_large_penalty
from panscope.types import UserError

_WIDEST = 1000


def run(flags: PlanSuite, console: Console) -> int:
    """Print the plan."""
    if not flags.days > 0:
        raise UserError(f"--days is {flags.days:g}: give a number of days above 0")
    whole = planned_cost(flags)
    for line in warn_large_penalty(whole.plan):
        say(console, line)
    for line in (*_summary(whole), *whole.plan.fitted()):
        say(console, line)
    say(console, "")
    _print_whole(console, listed(whole.plan) if flags.coders else grouped(whole.plan))
    _print_costs(console, whole, flags.days)
    say(console, "")
    for line in next_step(flags, whole):
        say(console, line)
    return 0


def _summary(whole: Cost) -> list[str]:
    """What matters first: time, money and memory on the named devices, and time on this machine."""
    compute, memory, steps = whole.compute, whole.memory, whole.plan.steps
    hours = compute.hours / whole.gpus
    here = time_here(whole, device_of(whole.plan.suite.model))
    held = "the language model leaves no memory for coders" if memory.fewest is None else _held(whole)
    return [
        *whole.plan.summary()[:3],
        f"on {whole.gpus} x {whole.gpu.name}: {duration(3600 * hours)}, {1000 * 3600 * hours / steps:.3g} ms a step, "
        f"about ${compute.hours * whole.prices.gpu_hour:,.2f}; {held}",
        f"on this machine ({here.device}, {here.flops / 1e9:,.0f} GFLOP/s in float32): about "
        f"{duration(3600 * here.hours)}, {1000 * here.step_seconds:.3g} ms a step",
    ]


def _held(whole: Cost) -> str:
    """The memory of the fullest device, or how many devices it takes."""
    here, fewest = whole.memory.here, whole.memory.fewest
    if not here.fits and fewest is not None:
        return f"it takes {fewest.gpus:,} of them"
    return f"{in_bytes(here.heaviest + whole.memory.lm + whole.memory.buffer)} of {whole.gpu.memory_gb:g} GiB each"


def _print_whole(console: Console, table: Table) -> None:
    """A table, a line a row where the terminal is too narrow for its longest words: no name is cut in two."""
    needed = Measurement.get(console, console.options.update(max_width=_WIDEST), table)
    table.width = None if needed.minimum < console.width else needed.maximum
    console.print(table, crop=False)


def _print_costs(console: Console, whole: Cost, days: float) -> None:
    planned, facts, gpu = whole.plan, whole.facts, whole.gpu
    say(console, "")
    say(
        console,
        f"{planned.suite.name} on {facts.name} ({facts.n_layers} layers, {in_counts(facts.parameters)} parameters): "
        f"{planned.steps:,} steps of {planned.batch:,} rows; {whole.gpus} x {gpu.name}, {gpu.memory_gb:g} GiB each",
    )
    say(console, "")
    console.print(compute_table(whole))
    _section(console, "memory", memory_lines(whole))
    if whole.gpus > 1:
        _section(console, "one coder alone on all devices, from stored rows", placement_lines(whole))
    _section(console, "disk, if activations were stored", disk_lines(whole))
    _section(console, f"store or regenerate, in {gpu.name}-hours", choice_lines(whole, days))
    say(console, "\nassumed")
    for sentence in assumptions(whole):
        say(console, f"  - {sentence}")


def _section(console: Console, title: str, lines: Lines) -> None:
    say(console, f"\n{title}")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in lines:
        table.add_row(f"  {name}", text)
    console.print(table, markup=False, highlight=False)
