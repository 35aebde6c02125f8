"""What `benchmarks.train.vs_sparsify` asks of both trainers, and how it reads their pace."""

import io

import pytest
from rich.console import Console

from benchmarks.train.panscope_trainer import suite_tables, windows
from benchmarks.train.task import Task, Window, tokens_per_second, windows_between
from benchmarks.train.vs_sparsify import table
from panscope.planning.plan import SuiteConfig

TASK = Task("models/a", ("text/one.jsonl", "text/two.jsonl"), batch=1000, context=128, window=5, windows=3)


def test_a_task_goes_through_a_command_line() -> None:
    assert Task.read(TASK.written()) == TASK
    assert TASK.steps == 15
    assert TASK.sequences == 7
    assert TASK.names() == {"model": "a", "text": ["one.jsonl", "two.jsonl"]}


def test_the_suite_is_one_that_panscope_reads() -> None:
    suite = SuiteConfig.read(suite_tables(TASK, "reference"), "the task")
    assert suite.tokens == 15_000
    assert suite.train.log_every == 5


def test_the_first_window_does_not_count() -> None:
    assert tokens_per_second([Window(100, 99.0), Window(100, 1.0), Window(50, 2.0)]) == pytest.approx(50)


def test_windows_from_panscopes_log() -> None:
    """Two coders; 20 rows in 2 s, then 10 in 5."""
    log = [
        {"coder": coder, "step": step, "rows": rows, "rows_per_second": rate}
        for step, rows, rate in ((2, 20, 10.0), (3, 30, 2.0))
        for coder in ("b", "a")
    ]
    assert windows(log) == [Window(20, 2.0), Window(10, 5.0)]


def test_windows_from_the_beginnings_of_steps() -> None:
    """Five steps begun; a window ends where the next begins, so the fifth only ends the fourth."""
    begun, rows = [0.0, 3.0, 4.0, 6.0, 7.0], [10, 20, 30, 40, 50]
    assert windows_between(begun, rows, 2) == [Window(30, 4.0), Window(70, 3.0)]
    assert windows_between(begun, rows, 5) == []


def test_the_table_is_of_medians() -> None:
    rates = {"panscope sparse": (800.0, 900.0, 100.0), "sparsify": (100.0, 200.0, 300.0)}
    lines = [
        {"trainer": trainer, "tokens_per_second": rate, "others": 0.01}
        for trainer, found in rates.items()
        for rate in found
    ]
    text = io.StringIO()
    Console(file=text, width=160).print(table(lines))
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.getvalue().splitlines() if "|" in row]
    assert rows[2:] == [
        ["panscope sparse", "800", "100", "900", "4.00", "1%"],
        ["sparsify", "200", "100", "300", "1.00", "1%"],
    ]
