"""Which window is read and which makes room: bookkeeping under a clock that the test turns."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.serving.server.buffer import UNTOUCHED, Buffer, WindowChoice

GRACE, FORGET = 10.0, 60.0


class Desk:
    """A buffer, its clock, and trainers that take at once what they are given."""

    def __init__(self, windows: int, places: int, grace: float = GRACE) -> None:
        self.now = 0.0
        self.buffer = Buffer(windows, places, grace, FORGET, lambda: self.now)
        self.epochs: dict[str, int] = {}
        self.had: dict[str, set[int]] = {}
        self.reads: list[int] = []

    def come(self, name: str, *had: int) -> None:
        self.epochs[name], self.had[name] = self.epochs.get(name, 0), set(had)
        self.buffer.meet(name)
        self.say(name)

    def say(self, name: str) -> None:
        had = np.zeros(self.buffer.windows, dtype=np.bool_)
        had[list(self.had[name])] = True
        self.buffer.heard(name, self.epochs[name], had)

    def read(self) -> list[int]:
        """Read as long as there is something to read; what was read."""
        found = []
        while (choice := self.buffer.choose()) is not None:
            if choice.drop is not None:
                self.buffer.drop(choice.drop)
            self.buffer.loaded(choice.window)
            found.append(choice.window)
        self.reads += found
        return found

    def take(self, name: str) -> int | None:
        """The oldest window that a trainer can have; None if there is none."""
        self.say(name)
        offered = self.buffer.asks(name)
        if not offered:
            return None
        window = offered[0]
        self.buffer.begins(name, window)
        self.buffer.ends(name, self.epochs[name], window, whole=True)
        assert window not in self.had[name]
        self.had[name].add(window)
        if len(self.had[name]) == self.buffer.windows:
            self.epochs[name], self.had[name] = self.epochs[name] + 1, set()
        self.say(name)
        return window


def test_nothing_is_read_for_nobody() -> None:
    desk = Desk(5, 2)
    assert desk.read() == []
    assert desk.buffer.seconds() is None
    desk.come("a", 0, 1, 2, 3, 4)
    assert desk.read() == []


def test_windows_are_read_in_order_as_far_as_there_is_room() -> None:
    desk = Desk(5, 2)
    desk.come("a")
    assert desk.read() == [0, 1]
    assert desk.take("a") == 0
    assert desk.read() == [2]
    assert list(desk.buffer.resident) == [1, 2]


def test_what_all_want_is_read_before_what_one_wants() -> None:
    desk = Desk(5, 1)
    desk.come("a", 3, 4)
    desk.come("b", 0, 1)
    assert desk.read() == [2]


def test_those_that_lag_are_waited_for_and_no_longer_than_that() -> None:
    desk = Desk(5, 1)
    desk.come("fast")
    desk.come("slow")
    assert desk.read() == [0]
    assert desk.take("fast") == 0
    assert desk.take("fast") is None
    assert desk.read() == []
    assert desk.buffer.seconds() == GRACE
    desk.now = GRACE
    assert desk.read() == [1]
    assert desk.take("slow") == 1
    assert desk.take("fast") == 1


def test_nobody_is_waited_for_while_nobody_is_hungry() -> None:
    """A slow trainer's windows stay: there is no reason to drop them."""
    desk = Desk(5, 2)
    desk.come("fast")
    desk.come("slow")
    assert desk.read() == [0, 1]
    desk.take("fast")
    desk.now = 5 * GRACE
    assert desk.read() == []


def test_a_trainer_that_leaves_everything_lying_costs_the_others_one_grace() -> None:
    desk = Desk(20, 2)
    desk.come("busy")
    desk.come("elsewhere")
    waited = 0.0
    while len(desk.had["busy"]) < 19:
        desk.read()
        if desk.take("busy") is None and not desk.read():
            step = desk.buffer.seconds() or 0.0
            desk.now += step
            waited += step
    assert waited == pytest.approx(GRACE)


def test_a_window_just_read_for_one_is_not_dropped_for_another() -> None:
    """Without this, two trainers in different places would wait for ever with no grace."""
    desk = Desk(5, 1, grace=0.0)
    desk.come("a", 0, 1, 2, 3)
    desk.come("b", 1, 2, 3, 4)
    assert desk.take("a") is None
    assert desk.take("b") is None
    assert desk.read() == [4]
    assert desk.buffer.seconds() == UNTOUCHED
    assert desk.take("a") == 4
    assert desk.read() == [0]
    assert desk.take("b") == 0


def test_silent_trainers_are_forgotten_also_in_the_middle_of_a_window() -> None:
    """One that takes message after message is not silent."""
    desk = Desk(5, 2)
    desk.come("a")
    desk.read()
    desk.buffer.begins("a", 0)
    desk.now = 0.9 * FORGET
    desk.buffer.goes_on("a")
    desk.now = 1.8 * FORGET
    assert desk.buffer.forget_silent() == []
    assert desk.buffer.seconds() == pytest.approx(0.1 * FORGET)
    desk.now = 2 * FORGET
    assert desk.buffer.forget_silent() == ["a"]
    desk.buffer.goes_on("a")
    desk.buffer.ends("a", 0, 0, whole=False)
    assert desk.buffer.choose() is None
    desk.buffer.ends("a", 0, 1, whole=True)


def test_a_window_that_broke_off_is_offered_again() -> None:
    desk = Desk(5, 2)
    desk.come("a")
    desk.read()
    desk.buffer.begins("a", 0)
    assert desk.buffer.asks("a") == [1]
    desk.buffer.ends("a", 0, 0, whole=False)
    assert desk.buffer.asks("a") == [0, 1]


def test_trainers_in_step_read_each_window_once_an_epoch() -> None:
    desk = Desk(50, 3)
    names = ["a", "b", "c"]
    for name in names:
        desk.come(name)
    for _ in range(100):
        for name in names:
            desk.read()
            assert desk.take(name) is not None
    assert len(desk.reads) <= 100 + 3


def test_a_trainer_of_half_the_speed_costs_at_most_half_as_much_again() -> None:
    """One epoch of each, nobody is waited for; what the slow one missed is read for it alone."""
    desk = Desk(60, 4, grace=0.0)
    for name in ("a", "b", "slow"):
        desk.come(name)
    turn = 0
    while desk.epochs["slow"] == 0:
        for name in ("a", "b", "slow") if turn % 2 == 0 else ("a", "b"):
            desk.read()
            if desk.epochs[name] == 0:
                desk.take(name)
                if desk.epochs[name]:
                    del desk.buffer.trainers[name]
        turn += 1
        desk.now += 1.0
    assert len(desk.reads) <= 1.5 * 60 + 4


@settings(max_examples=60, deadline=None)
@given(
    windows=st.integers(1, 12),
    places=st.integers(1, 5),
    grace=st.sampled_from([0.0, GRACE]),
    order=st.lists(st.integers(0, 3), min_size=20, max_size=200),
)
def test_nobody_starves(windows: int, places: int, grace: float, order: list[int]) -> None:
    """Whoever asks gets something it has not had within two patiences a trainer, whatever the others do."""
    desk = Desk(windows, places, grace)
    names = [str(number) for number in range(4)]
    for name in names:
        desk.come(name)
    for number in order:
        begun = desk.now
        desk.read()
        while desk.take(names[number]) is None:
            desk.read()
            if not desk.buffer.asks(names[number]):
                step = desk.buffer.seconds()
                assert step is not None
                desk.now += step
                desk.read()
            for name in names:
                desk.say(name)
            assert desk.now - begun <= 2 * len(names) * max(grace, UNTOUCHED)
        assert len(desk.buffer.resident) <= places


def test_a_choice_says_what_makes_room() -> None:
    desk = Desk(3, 1)
    desk.come("a")
    assert desk.buffer.choose() == WindowChoice(0, None)
    desk.read()
    desk.take("a")
    assert desk.buffer.choose() == WindowChoice(1, 0)
