"""Learning rate and sparsity over a run, at steps worked out by hand."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panscope.training.schedule import TrainingConfig, learning_rate, sparsity


def config(**fields: Any) -> TrainingConfig:
    return TrainingConfig.read({"normaliser": "none", "learning_rate": 8.0} | fields, "test")


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.8),  # a tenth of 8
        (2, 0.8 + 7.2 * 0.25),  # (1 - cos(pi/3)) / 2 = 1/4
        (3, 0.8 + 7.2 * 0.5),
        (4, 0.8 + 7.2 * 0.75),
        (6, 8.0),
        (99, 8.0),
    ],
)
def test_cosine_rise_from_a_tenth(step: int, expected: float):
    rising = config(lr_warmup="cosine", lr_warmup_from=0.1, lr_warmup_steps=6)
    assert learning_rate(rising, step, 100) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0), (99, 8.0)])
def test_linear_rise_from_nothing(step: int, expected: float):
    assert learning_rate(config(lr_warmup_steps=4), step, 100) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 8.0), (90, 8.0), (91, 7.4), (95, 5.0), (99, 2.6), (100, 2.0)]
)  # from 8 down to a quarter of it over the last 10 of 100 steps: 0.6 a step
def test_linear_fall_at_the_end(step: int, expected: float):
    falling = config(lr_decay_steps=10, lr_end=0.25)
    assert learning_rate(falling, step, 100) == pytest.approx(expected, rel=1e-12)


def test_without_rise_and_fall_the_rate_never_changes():
    assert {learning_rate(config(), step, 7) for step in range(8)} == {8.0}


def test_a_rise_that_meets_the_fall_multiplies():
    both = config(lr_warmup_steps=4, lr_decay_steps=4)
    assert [learning_rate(both, step, 4) for step in range(5)] == pytest.approx([0, 1.5, 2.0, 1.5, 0])


@pytest.mark.parametrize(("step", "expected"), [(0, 64.0), (1, 50.0), (2, 36.0), (3, 22.0), (4, 8.0), (1000, 8.0)])
def test_k_is_annealed_from_d_down_to_k(step: int, expected: float):
    annealing = config(sparsity_from=64, sparsity_warmup_steps=4)
    assert sparsity(annealing, 8.0, step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.0), (1, 1e-4), (5, 5e-4), (9, 9e-4), (10, 1e-3)])
def test_a_penalty_rises_from_nothing(step: int, expected: float):
    assert sparsity(config(sparsity_warmup_steps=10), 1e-3, step) == pytest.approx(expected, rel=1e-12)


def test_without_a_rise_the_penalty_holds_from_the_first_step():
    assert sparsity(config(), 0.5, 0) == 0.5


@st.composite
def configs(draw: st.DrawFn) -> TrainingConfig:
    share = st.floats(0, 1)
    steps = st.integers(0, 300)
    return config(
        learning_rate=draw(st.floats(1e-6, 1.0)),
        lr_warmup=draw(st.sampled_from(["linear", "cosine"])),
        lr_warmup_from=draw(share),
        lr_warmup_steps=draw(steps),
        lr_decay_steps=draw(steps),
        lr_end=draw(share),
        sparsity_from=draw(st.floats(0, 512)),
        sparsity_warmup_steps=draw(steps),
    )


@given(configs(), st.integers(1, 250), st.floats(1e-4, 256), st.data())
def test_both_stay_within_their_bounds(chosen: TrainingConfig, steps: int, final: float, data: st.DataObject):
    step = data.draw(st.integers(0, steps))
    assert 0 <= learning_rate(chosen, step, steps) <= chosen.learning_rate * (1 + 1e-12)
    low, high = sorted((chosen.sparsity_from, final))
    assert low * (1 - 1e-12) <= sparsity(chosen, final, step) <= high * (1 + 1e-12)


@given(configs(), st.floats(1e-4, 256))
def test_neither_ever_jumps(chosen: TrainingConfig, final: float):
    """A rise or fall over S steps moves by at most pi / 2 of its height / S at once (the steepest point of a cosine).

    Where a rise has no steps there is nothing to rise: it begins at the top.
    """
    steps = 250
    rates = [learning_rate(chosen, step, steps) for step in range(steps + 1)]
    slopes = [1.6 / length for length in (chosen.lr_warmup_steps, chosen.lr_decay_steps) if length]
    most = sum(slopes) * chosen.learning_rate + 1e-12
    assert all(abs(b - a) <= most for a, b in itertools.pairwise(rates))
    ks = [sparsity(chosen, final, step) for step in range(steps + 1)]
    height = abs(final - chosen.sparsity_from) if chosen.sparsity_warmup_steps else 0
    most = height / max(1, chosen.sparsity_warmup_steps) + 1e-9
    assert all(abs(b - a) <= most for a, b in itertools.pairwise(ks))
