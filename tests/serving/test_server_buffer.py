"""The buffer's replacement policy, under a clock controlled by the test."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.serving.server.buffer import MIN_UNSENT_SECONDS, Buffer, WindowChoice

GRACE, FORGET = 10.0, 60.0


class BufferDriver:
    """A buffer with a manual clock, and trainers that receive every window instantly."""

    def __init__(self, windows: int, capacity: int, grace: float = GRACE) -> None:
        self.now = 0.0
        self.buffer = Buffer(windows, capacity, grace, FORGET, lambda: self.now)
        self.epochs: dict[str, int] = {}
        self.had: dict[str, set[int]] = {}
        self.reads: list[int] = []

    def connect(self, name: str, *had: int) -> None:
        self.epochs[name], self.had[name] = self.epochs.get(name, 0), set(had)
        self.buffer.add_trainer(name)
        self.report(name)

    def report(self, name: str) -> None:
        had = np.zeros(self.buffer.windows, dtype=np.bool_)
        had[list(self.had[name])] = True
        self.buffer.update_position(name, self.epochs[name], had)

    def read(self) -> list[int]:
        """Load windows until the buffer chooses none; returns the loaded windows."""
        found = []
        while (choice := self.buffer.choose()) is not None:
            if choice.drop is not None:
                self.buffer.drop_window(choice.drop)
            self.buffer.add_window(choice.window)
            found.append(choice.window)
        self.reads += found
        return found

    def take(self, name: str) -> int | None:
        """Send a trainer the oldest window that it can receive; returns the window, or None."""
        self.report(name)
        offered = self.buffer.offer(name)
        if not offered:
            return None
        window = offered[0]
        self.buffer.start_sending(name, window)
        self.buffer.finish_sending(name, self.epochs[name], window, whole=True)
        assert window not in self.had[name]
        self.had[name].add(window)
        if len(self.had[name]) == self.buffer.windows:
            self.epochs[name], self.had[name] = self.epochs[name] + 1, set()
        self.report(name)
        return window


def test_nothing_is_read_without_a_trainer_that_wants_it() -> None:
    driver = BufferDriver(5, 2)
    assert driver.read() == []
    assert driver.buffer.seconds_until_change() is None
    driver.connect("a", 0, 1, 2, 3, 4)
    assert driver.read() == []


def test_windows_are_read_in_order_up_to_the_capacity() -> None:
    driver = BufferDriver(5, 2)
    driver.connect("a")
    assert driver.read() == [0, 1]
    assert driver.take("a") == 0
    assert driver.read() == [2]
    assert list(driver.buffer.resident) == [1, 2]


def test_what_all_want_is_read_before_what_one_wants() -> None:
    driver = BufferDriver(5, 1)
    driver.connect("a", 3, 4)
    driver.connect("b", 0, 1)
    assert driver.read() == [2]


def test_lagging_trainers_are_waited_for_during_the_grace_period() -> None:
    driver = BufferDriver(5, 1)
    driver.connect("fast")
    driver.connect("slow")
    assert driver.read() == [0]
    assert driver.take("fast") == 0
    assert driver.take("fast") is None
    assert driver.read() == []
    assert driver.buffer.seconds_until_change() == GRACE
    driver.now = GRACE
    assert driver.read() == [1]
    assert driver.take("slow") == 1
    assert driver.take("fast") == 1


def test_windows_are_kept_while_no_trainer_is_starved() -> None:
    """A slow trainer's windows are not dropped without need."""
    driver = BufferDriver(5, 2)
    driver.connect("fast")
    driver.connect("slow")
    assert driver.read() == [0, 1]
    driver.take("fast")
    driver.now = 5 * GRACE
    assert driver.read() == []


def test_a_stalled_trainer_costs_the_others_one_grace_period() -> None:
    driver = BufferDriver(20, 2)
    driver.connect("busy")
    driver.connect("elsewhere")
    waited = 0.0
    while len(driver.had["busy"]) < 19:
        driver.read()
        if driver.take("busy") is None and not driver.read():
            step = driver.buffer.seconds_until_change() or 0.0
            driver.now += step
            waited += step
    assert waited == pytest.approx(GRACE)


def test_a_window_just_read_for_one_is_not_dropped_for_another() -> None:
    """Otherwise two trainers at different positions would wait for ever if the grace period is zero."""
    driver = BufferDriver(5, 1, grace=0.0)
    driver.connect("a", 0, 1, 2, 3)
    driver.connect("b", 1, 2, 3, 4)
    assert driver.take("a") is None
    assert driver.take("b") is None
    assert driver.read() == [4]
    assert driver.buffer.seconds_until_change() == MIN_UNSENT_SECONDS
    assert driver.take("a") == 4
    assert driver.read() == [0]
    assert driver.take("b") == 0


def test_inactive_trainers_are_forgotten_even_during_a_window() -> None:
    """A trainer that receives messages is active."""
    driver = BufferDriver(5, 2)
    driver.connect("a")
    driver.read()
    driver.buffer.start_sending("a", 0)
    driver.now = 0.9 * FORGET
    driver.buffer.record_activity("a")
    driver.now = 1.8 * FORGET
    assert driver.buffer.forget_inactive() == []
    assert driver.buffer.seconds_until_change() == pytest.approx(0.1 * FORGET)
    driver.now = 2 * FORGET
    assert driver.buffer.forget_inactive() == ["a"]
    driver.buffer.record_activity("a")
    driver.buffer.finish_sending("a", 0, 0, whole=False)
    assert driver.buffer.choose() is None
    driver.buffer.finish_sending("a", 0, 1, whole=True)


def test_an_interrupted_window_is_offered_again() -> None:
    driver = BufferDriver(5, 2)
    driver.connect("a")
    driver.read()
    driver.buffer.start_sending("a", 0)
    assert driver.buffer.offer("a") == [1]
    driver.buffer.finish_sending("a", 0, 0, whole=False)
    assert driver.buffer.offer("a") == [0, 1]


def test_trainers_at_the_same_pace_read_each_window_once_an_epoch() -> None:
    driver = BufferDriver(50, 3)
    names = ["a", "b", "c"]
    for name in names:
        driver.connect(name)
    for _ in range(100):
        for name in names:
            driver.read()
            assert driver.take(name) is not None
    assert len(driver.reads) <= 100 + 3


def test_a_trainer_of_half_the_speed_costs_at_most_half_as_much_again() -> None:
    """One epoch of each trainer without a grace period; what the slow one misses is read for it alone."""
    driver = BufferDriver(60, 4, grace=0.0)
    for name in ("a", "b", "slow"):
        driver.connect(name)
    turn = 0
    while driver.epochs["slow"] == 0:
        for name in ("a", "b", "slow") if turn % 2 == 0 else ("a", "b"):
            driver.read()
            if driver.epochs[name] == 0:
                driver.take(name)
                if driver.epochs[name]:
                    del driver.buffer.trainers[name]
        turn += 1
        driver.now += 1.0
    assert len(driver.reads) <= 1.5 * 60 + 4


@settings(max_examples=60, deadline=None)
@given(
    windows=st.integers(1, 12),
    capacity=st.integers(1, 5),
    grace=st.sampled_from([0.0, GRACE]),
    order=st.lists(st.integers(0, 3), min_size=20, max_size=200),
)
def test_no_trainer_starves(windows: int, capacity: int, grace: float, order: list[int]) -> None:
    """Every trainer receives a new window within two grace periods per trainer, whatever the others do."""
    driver = BufferDriver(windows, capacity, grace)
    names = [str(number) for number in range(4)]
    for name in names:
        driver.connect(name)
    for number in order:
        begun = driver.now
        driver.read()
        while driver.take(names[number]) is None:
            driver.read()
            if not driver.buffer.offer(names[number]):
                step = driver.buffer.seconds_until_change()
                assert step is not None
                driver.now += step
                driver.read()
            for name in names:
                driver.report(name)
            assert driver.now - begun <= 2 * len(names) * max(grace, MIN_UNSENT_SECONDS)
        assert len(driver.buffer.resident) <= capacity


def test_a_choice_names_the_window_to_drop() -> None:
    driver = BufferDriver(3, 1)
    driver.connect("a")
    assert driver.buffer.choose() == WindowChoice(0, None)
    driver.read()
    driver.take("a")
    assert driver.buffer.choose() == WindowChoice(1, 0)
