"""What a run looks like in a terminal and in a log file: few lines, the time that is left, the newest figures."""

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from panscope import events
from panscope.listeners import progress
from panscope.listeners.log import LogListener, log_file
from panscope.listeners.progress import duration
from panscope.listeners.terminal import TerminalListener

RECORD = {
    "coder": "L01R", "step": 5, "loss": 2.5, "fvu": 0.25, "l0": 31.5, "dead_fraction": 0.1, "learning_rate": 1e-3,
    "rows_per_second": 1000.0,
}  # fmt: skip


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


def lines_of(told: list[tuple[float, events.Event]], clock: Clock) -> list[str]:
    """What is printed where the output is not a terminal, each event so many seconds after the one before."""
    written = io.StringIO()
    with TerminalListener(Console(file=written, width=100)) as listener:
        for seconds, event in told:
            clock.now += seconds
            listener(event)
    return written.getvalue().splitlines()


def test_ten_lines_a_task_and_the_time_left(clock: Clock):
    told: list[tuple[float, events.Event]] = [(0.0, events.Progress("training", 0, 1000, "steps"))]
    for step in range(1, 1001):
        told.append((0.1, events.Progress("training", step, 1000, "steps", "5,000 rows/s")))
        if step == 50:
            told.append((0.0, events.StepLogged([RECORD])))
    lines = lines_of([*told, (0.0, events.TaskEnded())], clock)
    assert len(lines) == 10
    assert lines[0] == "training: 100 of 1,000 steps, 5,000 rows/s, 90 s left, median FVU 0.2500"
    assert lines[-1] == "training: 1,000 of 1,000 steps, 5,000 rows/s, median FVU 0.2500"


def test_slow_tasks_are_told_of_every_minute(clock: Clock):
    told = [(10.0, events.Progress("evaluating", done, None, "tokens")) for done in range(0, 1300, 100)]
    lines = lines_of([*told], clock)
    assert lines == ["evaluating: 600 tokens", "evaluating: 1,200 tokens"]


def test_what_is_over_at_once_is_not_told_of(clock: Clock):
    told = [(0.1, events.Progress("evaluating", done, 1000, "tokens")) for done in range(0, 1001, 100)]
    assert lines_of([*told, (0.0, events.TaskEnded())], clock) == []


def test_the_last_line_is_that_of_the_end_and_never_above_the_total(clock: Clock):
    """An evaluation measures whole batches, so a little more than is asked for."""
    told = [(4.0, events.Progress("evaluating", done, 12_000, "tokens")) for done in (0, 4_119, 8_238, 12_357)]
    lines = lines_of([*told, (0.0, events.TaskEnded())], clock)
    assert lines[-1] == "evaluating: 12,000 of 12,000 tokens"


def test_messages_and_warnings_are_lines(clock: Clock):
    told: list[tuple[float, events.Event]] = [
        (0.0, events.Message("a [b] line")),
        (0.0, events.Message("look", is_warning=True)),
    ]
    assert lines_of(told, clock) == ["a [b] line", "Warning: look"]


def test_a_terminal_gets_a_bar_and_a_table():
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, color_system=None)
    with TerminalListener(console) as listener:
        listener(events.Progress("training", 0, 10, "steps"))
        listener(events.StepLogged([RECORD, RECORD | {"coder": "L02R"}]))
        listener(events.Progress("training", 5, 10, "steps", "1,000 rows/s"))
        listener(events.TaskEnded())
        text = written.getvalue()
        listener(events.Progress("evaluating", 100, None, "tokens"))
    assert "5 of 10 steps" in text and "1,000 rows/s" in text and "L02R" in text
    assert "100 tokens" in written.getvalue().removeprefix(text)


def test_durations_read_as_people_say_them():
    assert [duration(s) for s in (4.4, 89, 120, 7_100, 12_000, 200_000)] == [
        "4 s", "89 s", "2 min", "118 min", "3 h 20 min", "2 d 8 h",
    ]  # fmt: skip


def test_a_logger_hears_it_all(caplog: pytest.LogCaptureFixture, tmp_path: Path, clock: Clock):
    path = tmp_path / "run.log"
    told = [
        events.RunOpened(tmp_path, {}, 0),
        events.Message("said"),
        events.Message("wrong", is_warning=True),
        events.Progress("training", 0, 10, "steps"),
        events.Progress("training", 1, 10, "steps"),
        events.StepLogged([RECORD]),
        events.TaskEnded(),
        events.Evaluated("held_out", {"L01R": {}}),
        events.RunClosed(),
    ]
    with log_file(path) as to_file, caplog.at_level(logging.INFO, logger="panscope"):
        both = LogListener(), to_file
        for event in told:
            for listener in both:
                listener(event)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("INFO", f"{tmp_path}: training from step 0"),
        ("INFO", "said"),
        ("WARNING", "wrong"),
        ("INFO", "training: 0 of 10 steps"),
        ("INFO", "step 5: median loss 2.5, fvu 0.25, l0 31.5"),
        ("INFO", "evaluation held_out of 1 coders is written"),
        ("INFO", "closed"),
    ]
    written = path.read_text(encoding="utf-8").splitlines()
    assert len(written) == len(said) and all(line.endswith(text) for line, (_, text) in zip(written, said, strict=True))
