"""The loop: every batch to every coder, when figures are logged and saved, and how it stops."""

import math
from typing import Any

import pytest
import torch

from panscope.training.loop import train
from panscope.types import NonFiniteError, StoppedWaiting
from tests.support.planted import STEPS, batches, trainer


class Spy:
    """An observer that writes down what it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.records: list[dict[str, Any]] = []
        self.checkpoints: list[int] = []
        self._stop_at = stop_at

    def stepped(self, step: int) -> None:
        self.steps.append(step)

    def logged(self, records: list[dict[str, Any]]) -> None:
        self.records += records

    def checkpoint(self, step: int) -> None:
        self.checkpoints.append(step)

    def wants_stop(self) -> bool:
        return self._stop_at is not None and len(self.steps) + 1 >= self._stop_at


def test_every_coder_sees_every_batch_and_all_is_told_in_time():
    together, spy = [trainer("topk"), trainer("relu")], Spy()
    assert train(together, batches(), spy, steps=range(0, 11), log_every=4, checkpoint_every=5)
    assert spy.steps == list(range(1, 12))
    assert spy.checkpoints == [5, 10, 11]
    assert [(r["step"], r["coder"]) for r in spy.records] == [
        (step, coder) for step in (4, 8, 11) for coder in ("topk", "relu")
    ]
    assert [r["rows"] for r in spy.records] == [64, 64, 128, 128, 176, 176]
    assert all(r["rows_per_second"] > 0 for r in spy.records)
    for learner in together:
        alone = trainer(learner.name)
        for step, rows in zip(range(11), batches(), strict=False):
            alone.step(rows, step)
        for a, b in zip(alone.coder.parameters(), learner.coder.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_wish_to_stop_is_met_after_the_step_and_saved():
    spy = Spy(stop_at=3)
    assert not train([trainer("topk")], batches(), spy, steps=range(0, STEPS), log_every=100, checkpoint_every=100)
    assert (spy.steps, spy.checkpoints, spy.records) == ([1, 2, 3], [3], [])


def test_a_wish_to_stop_in_the_last_step_changes_nothing():
    spy = Spy(stop_at=5)
    assert train([trainer("topk")], batches(), spy, steps=range(0, 5), log_every=5, checkpoint_every=100)
    assert (spy.checkpoints, len(spy.records)) == ([5], 1)


def test_a_finished_run_has_no_steps_left():
    spy, learner = Spy(), trainer("topk")
    assert train([learner], iter(()), spy, steps=range(7, 7), log_every=1, checkpoint_every=1)
    assert (spy.steps, spy.checkpoints) == ([], [])


def test_two_parts_make_the_whole():
    whole, parts = trainer("jumprelu"), trainer("jumprelu")
    train([whole], batches(), Spy(), steps=range(0, STEPS), log_every=7, checkpoint_every=7)
    train([parts], batches(), Spy(stop_at=16), steps=range(0, STEPS), log_every=7, checkpoint_every=7)
    spy = Spy()
    train([parts], batches(16), spy, steps=range(16, STEPS), log_every=7, checkpoint_every=7)
    for a, b in zip(whole.coder.parameters(), parts.coder.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r["step"] for r in spy.records] == [21, 28, 35, 40]


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_logged_or_saved():
    good, bad, spy = trainer("relu"), trainer("topk"), Spy()
    with torch.no_grad():
        bad.coder.b_dec[0] = math.nan
    with pytest.raises(NonFiniteError, match="coder topk: the loss is nan at step 2"):
        train([good, bad], batches(), spy, steps=range(0, STEPS), log_every=2, checkpoint_every=2)
    assert (spy.records, spy.checkpoints) == ([], [])


def test_waiting_for_rows_can_be_left_with_everything_saved():
    def given():
        rows = batches()
        yield next(rows)
        yield next(rows)
        raise StoppedWaiting

    spy = Spy()
    assert not train([trainer("topk")], given(), spy, steps=range(0, STEPS), log_every=100, checkpoint_every=100)
    assert (spy.steps, spy.checkpoints) == ([1, 2], [2])
