"""What a plan costs, in five short tables: compute, memory, placement, disk, and storing against regenerating."""

from rich.table import Table

from panscope.cli.units import in_bytes, in_counts, in_hours
from panscope.cost.estimate import Cost, shardings
from panscope.cost.memory import Placement
from panscope.cost.storage import GEMMA_SCOPE_DAYS, StorageChoice

Lines = list[tuple[str, str]]
_KINDS_SHOWN = 12


def compute_table(cost: Cost) -> Table:
    """FLOPs, accelerator-hours, and hours on the devices that were asked for."""
    compute = cost.compute
    table = Table(box=None, pad_edge=False)
    table.add_column("compute")
    for heading in ("FLOP", f"{cost.gpu.name}-hours", f"hours on {cost.gpus}"):
        table.add_column(heading, justify="right")
    rows = (
        ("language model, one pass for all", compute.lm_flops, compute.lm_hours),
        ("coders, dense (reference kernels)", compute.dense_flops, compute.dense_hours),
        ("coders, sparse (active latents only)", compute.sparse_flops, compute.sparse_hours),
        ("Adam's memory traffic", None, compute.adam_hours),
        ("total, dense", compute.lm_flops + compute.dense_flops, compute.hours),
        ("total, sparse", compute.lm_flops + compute.sparse_flops, compute.least_hours),
    )
    if round(compute.bfloat16_hours, 9) != round(compute.dense_hours, 9):
        rows += (("coders, dense, if computed in bfloat16", compute.dense_flops, compute.bfloat16_hours),)
    for what, flops, hours in rows:
        count = "" if flops is None else f"{flops:.3g}"
        table.add_row(what, count, in_hours(hours), in_hours(hours / cost.gpus))
    return table


def memory_lines(cost: Cost) -> Lines:
    """What the devices hold in memory, and how many devices it takes."""
    memory, here = cost.memory, cost.memory.here
    lines = [
        ("coders", f"{in_counts(memory.parameters)} parameters, {in_bytes(memory.state)} in training: weights, "
         "gradients, Adam's moments and averages, all float32"),
        ("language model", f"{in_bytes(memory.lm)} in {cost.plan.suite.model.dtype}, on each device"),
        ("shuffle buffer", f"{in_bytes(memory.buffer)}: {cost.plan.buffer_rows:,} rows of every site"),
    ]  # fmt: skip
    if memory.fewest is None:
        lines.append(("devices", _no_memory(cost)))
        return lines
    lines.append((f"on {here.gpus}", _fit(here, memory.fewest)))
    lines.append(("fewest", f"{memory.fewest.gpus:,} x {cost.gpu.name}: {_placed(memory.fewest)}"))
    if memory.parts > 1:
        limit = in_bytes(cost.plan.step_bytes)
        text = f"the rows of a step are processed in {memory.parts} parts for the widest coder, with dense kernels"
        lines.append(("a step", f"{text}: train.step_gib allows {limit} for one part"))
    return lines


def placement_lines(cost: Cost) -> Lines:
    """How one coder of each kind would be sharded if it trained alone on stored activations (Gemma Scope's rule)."""
    found = shardings(cost)
    lines: Lines = []
    for planned, sharding in found[:_KINDS_SHOWN]:
        latents = cost.gpus // sharding.data
        text = f"rows in {sharding.data} shards, latents in {latents}"
        text += "" if sharding.hidden else "; limited by the transfer from the host"
        text += "; limited by memory bandwidth, as each device has few rows" if sharding.memory_bound else ""
        lines.append((planned.name, text))
    if len(found) > _KINDS_SHOWN:
        lines.append(("...", f"and {len(found) - _KINDS_SHOWN} more kinds"))
    return lines


def disk_lines(cost: Cost) -> Lines:
    """Activations on disk."""
    disk, one = cost.disk, cost.disk.one
    biggest = max(disk.float32, key=lambda site: disk.float32[site])
    smallest = min(disk.float32, key=lambda site: disk.float32[site])
    least, most = in_bytes(disk.float32[smallest]), in_bytes(disk.float32[biggest])
    return [
        ("all sites", f"{in_bytes(sum(disk.float32.values()))} in 32 bits, "
         f"{in_bytes(sum(disk.bfloat16.values()))} in bfloat16; {len(disk.float32)} sites and layers"),
        ("a site", f"{least} in 32 bits" + ("" if least == most else f" ({smallest}) to {most} ({biggest})")),
        ("reading", f"{disk.one_coder.name} alone on {cost.gpus} reads {in_bytes(disk.read_bytes_a_second)} a second "
         f"of its {in_bytes(one.bytes)}"),
    ]  # fmt: skip


def choice_lines(cost: Cost, days: float) -> Lines:
    """Store or regenerate, for the whole suite and for one coder that is trained again."""
    disk = cost.disk
    lines = [
        ("whole suite", _choice(disk.everything, days)),
        (disk.one_coder.name, _choice(disk.one, days)),
    ]
    for rule_days in GEMMA_SCOPE_DAYS:
        holds = "holds" if disk.one.rule_holds(rule_days) else "does not hold"
        price = disk.one.price_of_rule(rule_days, cost.prices)
        text = (
            f"storing {disk.one_coder.name}'s for {rule_days} days is 10 times cheaper than generating them again: "
            f"{holds} (it does where storage costs at most ${price:,.2g} per TiB and month)"
        )
        lines.append(("Gemma Scope's rule", text))
    return lines


def _choice(choice: StorageChoice, days: float) -> str:
    reuses = choice.reuses(days)
    return (
        f"generating them again costs {in_hours(choice.regenerate)}, storing them for a day {in_hours(choice.day)}: "
        f"equal after {choice.even_days:.2g} days; storing for {days:g} days pays if they are read {reuses:,} more "
        f"time{_s(reuses)}"
    )


def _no_memory(cost: Cost) -> str:
    return (
        f"the language model leaves no memory for coders on a {cost.gpu.name} of {cost.gpu.memory_gb:g} GiB, and it is "
        "not split: set model.dtype to bfloat16, or take a larger device"
    )


def _fit(here: Placement, fewest: Placement) -> str:
    if here.fits:
        return f"fits: {_placed(here)}"
    parts = -(-fewest.gpus // here.gpus)
    available = max(0, here.available)
    return (
        f"does not fit: a device would get {in_bytes(here.heaviest)} of coders and has {in_bytes(available)} for them: "
        f"train it in about {parts} parts, each with its own pass of the language model, or take more devices"
    )


def _placed(placement: Placement) -> str:
    text = f"{placement.whole:,} coder{_s(placement.whole)} unsharded"
    if placement.sharded:
        over = sorted({shard.over for shard in placement.sharded})
        text += f", {len(placement.sharded):,} sharded over latents on {' or '.join(map(str, over))} devices"
    return f"{text}; the fullest device holds {in_bytes(placement.heaviest)} of at most {in_bytes(placement.available)}"


def _s(number: int) -> str:
    return "" if number == 1 else "s"
