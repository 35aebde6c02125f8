"""The table of `benchmarks.step.race` on numbers made up."""

import io
from typing import Any

from rich.console import Console

from benchmarks.step.table import base, table, title


def _line(contestant: str, ms: float, **more: Any) -> dict[str, Any]:
    found = {
        "case": "topk:4096x512x8192@32",
        "contestant": contestant,
        "tool": contestant.partition(" ")[0],
        "ms": ms,
        "l0": 32.0,
        "beyond_mb": None,
        "clean": True,
    }
    return found | more


LINES = [
    _line("saelens", 1200),
    _line("saelens bf16", 900, clean=False),
    _line("sparsify", 600, beyond_mb=500.0),
    _line("panscope reference", 1500, beyond_mb=600.0),
    _line("panscope sparse", 80, beyond_mb=125.0),
    _line("product bf16", 50, tool="", l0=None),
    _line("copy", 10, tool="", l0=None),
]


def _printed(lines: list[dict[str, Any]]) -> list[list[str]]:
    text = io.StringIO()
    Console(file=text, width=200).print(table(lines))
    rows = [row for row in text.getvalue().splitlines() if row.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_ratios_are_to_panscopes_fastest_and_to_the_product() -> None:
    rows = {row[0]: row[1:] for row in _printed(LINES)}
    assert rows["panscope sparse"] == ["80.0", "1.00", "1.60", "32.0", "125", ""]
    assert rows["sparsify"] == ["600", "7.50", "12.0", "32.0", "500", ""]
    assert rows["saelens bf16"] == ["900", "11.2", "18.0", "32.0", "-", "disturbed"]
    # 2 x 4096 x 512 x 8192 FLOP in 50 ms; 2^26 numbers read and written in 10 ms.
    assert rows["product bf16"] == ["50.0", "0.62", "1.00", "-", "-", "687 GFLOP/s"]
    assert rows["copy"][-1] == "53.7 GB/s"


def test_contestants_stand_before_ceilings_fastest_first() -> None:
    names = [row[0] for row in _printed(LINES)]
    assert names[:2] == ["panscope sparse", "sparsify"]
    assert names[-2:] == ["copy", "product bf16"]


def test_the_title_names_the_fastest_peer() -> None:
    said = "topk:4096x512x8192@32: sparsify takes 7.5x as long as panscope sparse"
    assert title(LINES) == f"{said} and 4.0x the memory beyond weights and moments"
    assert title([line | {"beyond_mb": None} for line in LINES]) == said


def test_alone_there_is_nothing_to_compare() -> None:
    alone = [_line("sparsify", 600)]
    assert base(alone) is None
    assert title(alone) == "topk:4096x512x8192@32"
    assert _printed(alone) == [["sparsify", "600", "-", "-", "32.0", "-", ""]]
