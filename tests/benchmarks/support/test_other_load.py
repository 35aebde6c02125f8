"""How busy others are: the count it rests on, and that it knows one's own work from theirs."""

import time

import pytest

from benchmarks.support.other_load import OtherLoad, busy_seconds


def test_idle_and_waiting_are_not_busy() -> None:
    """User 100, nice 10, system 20, irq 1, softirq 2, steal 3; guest time is in user already."""
    stat = "cpu  100 10 20 5000 700 1 2 3 50 60\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert busy_seconds(stat, 100) == pytest.approx(1.36)


def test_own_work_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cores' busy time, made up: half a second more than what this process used."""
    monkeypatch.setattr("benchmarks.support.other_load._busy", lambda: time.process_time() + extra)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    extra = 0.0
    load = OtherLoad()
    start = time.perf_counter()
    while time.perf_counter() - start < 0.1:
        pass
    extra = 0.5
    seconds = time.perf_counter() - start
    assert load.share() == pytest.approx(0.5 / seconds / 2, rel=0.1)


def test_a_machine_that_does_not_count_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.support.other_load._busy", lambda: None)
    assert OtherLoad().share() is None
