"""The table of one case, made from its result lines."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from benchmarks.step.case import Case
from benchmarks.step.ceilings import WHOLE_BF16, achieved
from benchmarks.support.tables import markdown_table

OURS = "panscope"
Line = dict[str, Any]
_COLUMNS = ("", "ms", "x Panscope", "x bf16 product", "L0", "MB beyond weights and moments", "")


def table(lines: Sequence[Line]) -> Table:
    """A row for each contestant of one case, fastest first, then for each of the machine's limits."""
    shown = markdown_table(_COLUMNS)
    ours, product = base(lines), next((line for line in lines if line["contestant"] == WHOLE_BF16), None)
    for line in sorted(lines, key=lambda line: (line["tool"] == "", line["ms"])):
        shown.add_row(
            line["contestant"],
            _digits(line["ms"]),
            _ratio(line, ours),
            _ratio(line, product),
            "-" if line["l0"] is None else f"{line['l0']:.1f}",
            "-" if line["beyond_mb"] is None else f"{line['beyond_mb']:.0f}",
            _remark(line),
        )
    return shown


def title(lines: Sequence[Line]) -> str:
    """The case, and how much more time and memory the fastest peer needs."""
    ours, peers = base(lines), [line for line in lines if line["tool"] not in (OURS, "")]
    said = lines[0]["case"]
    if ours is None or not peers:
        return said
    fastest = min(peers, key=lambda line: line["ms"])
    said += f": {fastest['contestant']} takes {fastest['ms'] / ours['ms']:.1f}x as long as {ours['contestant']}"
    if fastest["beyond_mb"] and ours["beyond_mb"]:
        said += f" and {fastest['beyond_mb'] / ours['beyond_mb']:.1f}x the memory beyond weights and moments"
    return said


def base(lines: Sequence[Line]) -> Line | None:
    """The line of Panscope's fastest setting; None without Panscope."""
    return min((line for line in lines if line["tool"] == OURS), key=lambda line: line["ms"], default=None)


def _ratio(line: Line, to: Line | None) -> str:
    return "-" if to is None else _digits(line["ms"] / to["ms"])


def _digits(number: float) -> str:
    """A number with about three significant digits."""
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"


def _remark(line: Line) -> str:
    """The rate of one of the machine's limits, and `disturbed` where other processes used the machine too much."""
    reached = achieved(Case.parse(line["case"]), line["contestant"], line["ms"]) if line["tool"] == "" else ""
    return " ".join(filter(None, [reached, "" if line["clean"] else "disturbed"]))
