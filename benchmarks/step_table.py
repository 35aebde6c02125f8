"""The table of one case, from its lines of results."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.step_case import Case
from benchmarks.step_ceilings import WHOLE_BF16, achieved

OURS = "panscope"
Line = dict[str, Any]


def table(lines: Sequence[Line]) -> Table:
    """A row for each contestant and ceiling of one case, fastest first; Markdown, for docs/performance.md."""
    shown = Table(box=box.MARKDOWN)
    for name in ("", "ms", "x Panscope", "x bf16 product", "L0", "MB beyond weights and moments", ""):
        shown.add_column(name, no_wrap=True)
    ours, product = base(lines), _named(lines, WHOLE_BF16)
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
    """The case, and by how much its fastest peer is slower and takes more memory."""
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
    """Panscope's fastest."""
    return min((line for line in lines if line["tool"] == OURS), key=lambda line: line["ms"], default=None)


def _named(lines: Sequence[Line], name: str) -> Line | None:
    return next((line for line in lines if line["contestant"] == name), None)


def _ratio(line: Line, to: Line | None) -> str:
    return "-" if to is None else _digits(line["ms"] / to["ms"])


def _digits(number: float) -> str:
    """Three that count."""
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"


def _remark(line: Line) -> str:
    """What a ceiling amounts to; where the machine was not left alone, that."""
    reached = achieved(Case.parse(line["case"]), line["contestant"], line["ms"]) if line["tool"] == "" else ""
    return " ".join(filter(None, [reached, "" if line["clean"] else "disturbed"]))
