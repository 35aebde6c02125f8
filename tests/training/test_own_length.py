"""Coders with fewer steps of their own in one run: they stop changing, keep their own schedules, and can be resumed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.training.checkpoint import Checkpoints
from panscope.training.coder_trainer import CoderTrainer
from panscope.training.loop import train
from panscope.types import ActivationBatch
from tests.support.planted import batch, batches, trainer
from tests.training.test_loop import Spy

SHORT, LONG, LOG, SAVE = 7, 20, 5, 3
TRAINING: dict[str, Any] = {"lr_warmup_steps": 2, "lr_decay_steps": 3, "sparsity_from": 12, "sparsity_warmup_steps": 4}
EXTRA: dict[str, Any] = {"average_decay": 0.8}


def three() -> list[CoderTrainer]:
    """One of 7 steps, one of 20, one of 10 (whose end is a logged step)."""
    lengths = {"topk": SHORT, "relu": LONG, "batchtopk": 10}
    learners = [trainer(kind, TRAINING | EXTRA, steps=steps) for kind, steps in lengths.items()]
    return learners


class Keeping(Spy):
    """Also keeps the weights after every step, and the states where a checkpoint is due."""

    def __init__(self, learners: list[CoderTrainer], stop_at: int | None = None) -> None:
        super().__init__(stop_at)
        self.learners = learners
        self.weights: list[dict[str, dict[str, Tensor]]] = []

    def stepped(self, step: int) -> None:
        super().stepped(step)
        self.weights.append({one.name: one.coder.tensors() for one in self.learners})


def go(learners: list[CoderTrainer], spy: Spy, start: int = 0, rows: Iterator[ActivationBatch] | None = None) -> bool:
    rows = rows or batches(start)
    return train(learners, rows, spy, steps=range(start, LONG), log_every=LOG, checkpoint_every=SAVE)


def test_a_coder_stops_after_its_own_steps_and_the_others_go_on():
    learners = three()
    spy = Keeping(learners)
    assert go(learners, spy)
    for name, steps in (("topk", SHORT), ("batchtopk", 10), ("relu", LONG)):
        before, at_end = spy.weights[steps - 2][name], spy.weights[steps - 1][name]
        assert not torch.equal(before["W_enc"], at_end["W_enc"])
        for later in spy.weights[steps:]:
            assert all(torch.equal(later[name][key], tensor) for key, tensor in at_end.items())


@pytest.mark.parametrize("number", range(3))
def test_a_short_coder_is_what_a_short_run_alone_makes(number: int):
    """Warm-up, decay and annealing by its own length; the same average in the end."""
    together = three()
    go(together, Spy())
    alone = three()[number]
    train([alone], batches(), Spy(), steps=range(0, alone.steps), log_every=100, checkpoint_every=100)
    for name, tensor in alone.finished().tensors().items():
        assert torch.equal(tensor, together[number].finished().tensors()[name]), name


def test_its_last_line_says_its_own_last_rates_and_there_is_none_after():
    spy = Spy()
    go(three(), spy)
    lines = [(r["step"], r["coder"]) for r in spy.records]
    every = ("topk", "relu", "batchtopk")
    ends = [(7, "topk"), (10, "relu"), (10, "batchtopk")]
    assert lines == [*((5, coder) for coder in every), *ends, (15, "relu"), (20, "relu")]
    assert all(r["rows"] == r["step"] * len(batch(0)) for r in spy.records)
    rates = {(r["step"], r["coder"]): r["learning_rate"] for r in spy.records}
    # Falling over the last 3 of 7, 10 and 20 steps: a third is left at the last one.
    assert rates[7, "topk"] == pytest.approx(0.01 / 3)
    assert rates[10, "batchtopk"] == pytest.approx(0.01 / 3)
    assert rates[10, "relu"] == rates[15, "relu"] == pytest.approx(0.01)
    assert rates[20, "relu"] == pytest.approx(0.01 / 3)


def test_the_figures_of_its_last_line_are_of_its_own_rows():
    """Steps 5 and 6 alone."""
    learners, spy = three(), Spy()
    go(learners, spy)
    alone = three()[0]
    for step in range(SHORT):
        if step == 5:
            alone.read(5)
        alone.step(batch(step), step)
    expected = alone.read(SHORT)
    (line,) = [r for r in spy.records if (r["step"], r["coder"]) == (7, "topk")]
    assert {key: line[key] for key in expected} == expected


def lines_of(spy: Spy) -> list[dict[str, Any]]:
    return [{key: value for key, value in r.items() if key != "rows_per_second"} for r in spy.records]


@pytest.mark.parametrize("cut", range(1, LONG))
def test_a_run_stopped_anywhere_goes_on_to_the_same_end(cut: int, tmp_path: Path):
    """Before, at and after the steps at which coders end, between logged steps and at them: same weights and lines."""
    whole, expected = three(), Spy()
    go(whole, expected)
    first, before = three(), Spy(stop_at=cut)
    assert not go(first, before)
    Checkpoints(tmp_path).save(cut, {one.name: one.state_dict() for one in first})
    parts = Checkpoints(tmp_path).load(cut)
    second, after = three(), Spy()
    for one in second:
        one.step(batch(77), 0)
        one.load_state_dict(parts[one.name])
    assert go(second, after, start=cut)
    for a, b in zip(whole, second, strict=True):
        for name, tensor in a.finished().tensors().items():
            assert torch.equal(tensor, b.finished().tensors()[name]), name
    assert lines_of(before) + lines_of(after) == lines_of(expected)
