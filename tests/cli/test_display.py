"""What a run says where the output is no terminal."""

import io

import pytest
from rich.console import Console

from panscope.cli import display


def test_progress_ends_at_what_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    """An evaluation measures whole batches, so a little more than that."""
    monkeypatch.setattr(display, "_SECONDS_BETWEEN_LINES", -1.0)
    written = io.StringIO()
    reporter = display.TerminalReporter(Console(file=written))
    reporter.evaluating(4_119, 12_000)
    reporter.evaluating(16_473, 12_000)
    assert written.getvalue().splitlines()[-2:] == ["evaluating: 4,119 of 12,000", "evaluating: 12,000 of 12,000"]
    reporter.finished()
    reporter.evaluating(16_473, None)
    assert written.getvalue().splitlines()[-1] == "evaluating: 16,473"
