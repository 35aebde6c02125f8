"""Taking turns, and which steps count."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from benchmarks.step import turns
from benchmarks.step.turns import WARM_UP, Timing, Turn, time_in_turns

ROWS = [torch.full((1,), float(number)) for number in range(3)]


class _Load:
    """Others at work, as told."""

    told: ClassVar[list[float]] = []

    def share(self) -> float:
        return self.told.pop(0) if self.told else 0.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How busy others are during each turn to come."""
    monkeypatch.setattr(turns, "OtherLoad", _Load)
    monkeypatch.setattr(turns, "_MAX_TURN_STEPS", 2)
    _Load.told = []
    return _Load.told


def _silent(_: str) -> None:
    """Nobody listens."""


def _runners(said: list[str]) -> dict[str, turns.Step]:
    def runner(name: str) -> turns.Step:
        def step(x: Tensor) -> None:
            said.append(f"{name}{int(x)}")

        return step

    return {name: runner(name) for name in "ab"}


def test_everyone_steps_in_every_round(told: list[float]) -> None:
    del told
    said: list[str] = []
    timings = time_in_turns(_runners(said), ROWS, 2, _silent)
    assert [word[0] for word in said] == ["a"] * WARM_UP + ["b"] * WARM_UP + list("aabb" * 2)
    assert [int(word[1]) for word in said] == [number % 3 for number in range(len(said))]  # other rows at each step
    assert {name: len(timing.counted()) for name, timing in timings.items()} == {"a": 4, "b": 4}


def test_a_disturbed_turn_is_made_up_for(told: list[float]) -> None:
    told += [0.0, 0.5, 0.0, 0.5]  # a, b, a, b: b has no clean step in the two rounds asked for
    said: list[str] = []
    timings = time_in_turns(_runners(said), ROWS, 2, _silent)
    assert "".join(word[0] for word in said[2 * WARM_UP :]) == "aabb" * 2 + "bb"
    assert timings["b"].enough()
    assert len(timings["b"].counted()) == 2


def test_patience_ends(told: list[float]) -> None:
    told += [0.5] * 100
    timing = time_in_turns(_runners([]), ROWS, 2, _silent)["a"]
    assert not timing.enough()
    assert len(timing.turns) == 6
    assert len(timing.counted()) == 12  # all there are, and the line says that they are not clean


def test_a_median_is_over_clean_steps() -> None:
    taken = (Turn((0.1, 0.2), 0.01), Turn((9.0,), 0.5), Turn((0.4,), None))
    assert Timing(taken, 3).median_ms() == pytest.approx(200)
    assert Timing(taken, 4).median_ms() == pytest.approx(300)  # too few: all four
