"""The commands that a plan ends with: how to train the suite on the devices that were asked for."""

import dataclasses
import shlex
from typing import Any

from panscope import api
from panscope.cli.flags.plan import PlanSuite
from panscope.cli.suite_flags import suite_from
from panscope.cli.units import counted
from panscope.cost.estimate import Cost
from panscope.cost.shares import too_large
from panscope.listeners.progress import duration

_SELECTING = ("wiring", "sites", "layers", "widths", "share")


def planned_cost(flags: PlanSuite) -> Cost:
    """The cost of the coders that the flags name."""
    return api.plan(suite_from(flags.suite, _selection(flags)), gpu=flags.gpu, gpus=flags.gpus)


def next_step(flags: PlanSuite, whole: Cost) -> list[str]:
    """What to type next, line by line."""
    if not whole.shares:
        return _without_too_large(flags, whole)
    train = _train(flags)
    if len(whole.shares) == 1:
        return [f"to train it: {train}"]
    count, name = len(whole.shares), whole.plan.suite.name
    together = f" ({whole.gpus} at a time)" if 1 < whole.gpus < count else ""
    return [
        f"to train it in {count:,} shares, each on one {whole.gpu.name}{together} in about "
        f"{duration(3600 * whole.share_hours)} at most:",
        f"  {train} --share 1/{count}    and so on to --share {count}/{count}",
        f"  panscope merge runs/{name}-share-*-of-{count} --out runs/{name}",
    ]


def _without_too_large(flags: PlanSuite, whole: Cost) -> list[str]:
    """Which coders are too large for the device, and what to type for those of other widths."""
    plan, device = whole.plan, f"one {whole.gpu.name}"
    if flags.share is not None:
        return [f"it does not fit on {device}: plan the suite without --share, which says how many shares do"]
    large = too_large(plan, whole.facts, whole.gpu)
    too_wide = sorted({coder.coder.width for coder in large})
    left = sorted({coder.coder.width for coder in plan.coders}.difference(too_wide))
    widths = ", ".join(f"{width:,}" for width in too_wide)
    what = f"{counted(len(large), 'coder')} of width {widths}"
    line = f"{what} do not fit on {device}, even one at a time: take another --gpu"
    if not left:
        return [line]
    others = dataclasses.replace(flags, widths=tuple(left))
    return [f"{line}; the others:", *next_step(others, planned_cost(others))]


def _train(flags: PlanSuite) -> str:
    """The command that trains what was planned."""
    words = ["panscope", "train", flags.suite]
    for name, value in _selection(flags).items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _selection(flags: PlanSuite) -> dict[str, Any]:
    """The flags that say which coders of the suite are planned."""
    return {name: value for name in _SELECTING if (value := getattr(flags, name)) is not None}
