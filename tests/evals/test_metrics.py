"""Every metric against plain float64 loops, in one go and merged from parts.

Shape letters: B rows, E width, F latents, K codes a row, P predicted tokens.
"""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.evals.metrics import METRICS
from panscope.evals.metrics.fvu import FractionOfVarianceUnexplained
from panscope.evals.outcome import Outcome
from panscope.evals.tally import Tally
from panscope.types import Latents

E, F, K = 3, 12, 4


def an_outcome(rows: int = 40, predicted: int = 30, seed: int = 0) -> Outcome:
    """Random rows and losses; sparse codes where some latents fire often, some never and some places are unused."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(rows, E, generator=g, dtype=torch.float64) + torch.tensor([5.0, -1.0, 0.0])
    y_hat = y + 0.3 * torch.randn(rows, E, generator=g, dtype=torch.float64)
    weights = torch.linspace(1, 0.001, F).square()
    weights[-2:] = 0
    indices = torch.multinomial(weights.expand(max(rows, 1), F), K, generator=g)[:rows]
    values = torch.rand(rows, K, generator=g) * (torch.rand(rows, K, generator=g) > 0.2)
    losses = [torch.rand(predicted, generator=g, dtype=torch.float64) * size for size in (1, 1.2, 4, 3, 0.1)]
    return Outcome(y, y_hat, Latents(values, F, indices), *losses)


def brute_force(outcome: Outcome) -> dict[str, float | int]:
    """Every number from its definition, one row and one entry at a time."""
    y, y_hat, codes = outcome.y.tolist(), outcome.y_hat.tolist(), outcome.latents.dense().tolist()
    rows, width = len(y), len(y[0])
    mean = [math.fsum(row[e] for row in y) / rows for e in range(width)]
    error = math.fsum((y[b][e] - y_hat[b][e]) ** 2 for b in range(rows) for e in range(width))
    scatter = math.fsum((y[b][e] - mean[e]) ** 2 for b in range(rows) for e in range(width))
    size = math.fsum(y[b][e] ** 2 for b in range(rows) for e in range(width))
    cosines = [
        math.fsum(a * b for a, b in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))
        for u, v in zip(y, y_hat, strict=True)
    ]
    firings = [sum(1 for b in range(rows) if codes[b][f] > 0) for f in range(len(codes[0]))]
    clean, spliced, zero, average, kl = (
        math.fsum(loss.tolist()) / len(loss)
        for loss in (
            outcome.ce_clean,
            outcome.ce_spliced,
            outcome.ce_zero_ablated,
            outcome.ce_mean_ablated,
            outcome.kl,
        )
    )
    return {
        "tokens": rows,
        "l0": sum(firings) / rows,
        "l1": math.fsum(math.fsum(row) for row in codes) / rows,
        "mse": error / (rows * width),
        "fvu": error / scatter,
        "explained_variance": 1 - error / scatter,
        "ev_uncentered": 1 - error / size,
        "cosine": math.fsum(cosines) / rows,
        "ce_clean": clean,
        "ce_spliced": spliced,
        "ce_zero_ablated": zero,
        "ce_mean_ablated": average,
        "delta_loss": spliced - clean,
        "loss_recovered": (zero - spliced) / (zero - clean),
        "predicted_tokens": len(outcome.kl),
        "kl": kl,
        "dead_fraction": sum(1 for count in firings if count == 0) / len(firings),
        "dead_window": rows,
        "dense_fraction": sum(1 for count in firings if count > 0.1 * rows) / len(firings),
    }


def part(outcome: Outcome, rows: slice, predicted: slice) -> Outcome:
    latents = outcome.latents
    indices = None if latents.indices is None else latents.indices[rows]
    codes = Latents(latents.values[rows], latents.width, indices)
    losses = (outcome.ce_clean, outcome.ce_spliced, outcome.ce_zero_ablated, outcome.ce_mean_ablated, outcome.kl)
    return Outcome(outcome.y[rows], outcome.y_hat[rows], codes, *(loss[predicted] for loss in losses))


def parts(outcome: Outcome, row_cuts: list[int], token_cuts: list[int]) -> list[Outcome]:
    """The outcome cut into consecutive parts, some of them perhaps empty."""
    b = [0, *sorted(row_cuts), len(outcome.y)]
    p = [0, *sorted(token_cuts), len(outcome.kl)]
    return [part(outcome, slice(*b[i : i + 2]), slice(*p[i : i + 2])) for i in range(len(b) - 1)]


def tally_of(outcomes: list[Outcome]) -> Tally:
    tally = Tally()
    for outcome in outcomes:
        tally.update(outcome)
    return tally


def close(expected: dict[str, Any]) -> Any:
    # The order of float64 sums is all that differs; l1 is summed over a row's codes in fp32 first.
    return pytest.approx(expected, rel=1e-7)


def test_every_number_is_its_definition():
    outcome = an_outcome()
    result = tally_of([outcome]).result()
    assert result == close(brute_force(outcome))
    assert 0 < result["dead_fraction"] < 1
    assert 0 < result["dense_fraction"] < 1


def test_no_two_metrics_share_a_name():
    results = [metric() for metric in METRICS.values()]
    for metric in results:
        metric.update(an_outcome())
    assert sum(len(metric.result()) for metric in results) == len(tally_of([an_outcome()]).result())


@settings(max_examples=40, deadline=None)
@given(
    row_cuts=st.lists(st.integers(0, 40), min_size=3, max_size=3),
    token_cuts=st.lists(st.integers(0, 30), min_size=3, max_size=3),
    order=st.permutations(range(5)),
    split=st.integers(0, 5),
)
def test_merged_parts_equal_one_pass(row_cuts: list[int], token_cuts: list[int], order: list[int], split: int):
    outcome = an_outcome()
    pieces = [*parts(outcome, row_cuts, token_cuts), part(outcome, slice(0, 0), slice(0, 0))]
    shuffled = [pieces[i] for i in order]
    first, second = tally_of(shuffled[:split]), tally_of(shuffled[split:])
    first.merge(second)
    assert first.result() == close(tally_of([outcome]).result())


def test_merging_leaves_the_other_as_it_was():
    first, second = tally_of([an_outcome(seed=1)]), tally_of([an_outcome(seed=2)])
    before = second.result()
    first.merge(second)
    first.update(an_outcome(seed=3))
    assert second.result() == before
    fresh = Tally()
    fresh.merge(second)
    fresh.update(an_outcome(seed=3))
    assert second.result() == before


def test_sparse_and_dense_codes_give_the_same_numbers():
    sparse = an_outcome()
    dense = replace(sparse, latents=Latents(sparse.latents.dense(), F))
    assert tally_of([dense]).result() == close(tally_of([sparse]).result())


def test_state_goes_on_where_it_was_taken():
    outcomes = [an_outcome(seed=seed) for seed in range(4)]
    first = tally_of(outcomes[:2])
    state = first.state_dict()
    first.update(outcomes[3])  # must not reach the state already taken
    resumed = Tally()
    resumed.load_state_dict(state)
    for outcome in outcomes[2:]:
        resumed.update(outcome)
    assert resumed.result() == tally_of(outcomes).result()


def test_the_state_before_the_first_batch_can_be_loaded():
    fresh = Tally()
    fresh.load_state_dict(Tally().state_dict())
    fresh.update(an_outcome())
    assert fresh.result() == tally_of([an_outcome()]).result()


def test_state_does_not_grow_with_the_text():
    def numbers(tally: Tally) -> int:
        return sum(value.numel() for sums in tally.state_dict().values() for value in sums.values())

    assert numbers(tally_of([an_outcome()])) == numbers(tally_of([an_outcome(rows=400, predicted=300)] * 3))


def exact_fvu(y: Tensor, y_hat: Tensor) -> float:
    """In rational arithmetic: no rounding at all."""
    rows = [[Fraction(value) for value in row] for row in y.tolist()]
    guesses = [[Fraction(value) for value in row] for row in y_hat.tolist()]
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    error = sum((a - b) ** 2 for u, v in zip(rows, guesses, strict=True) for a, b in zip(u, v, strict=True))
    scatter = sum((a - m) ** 2 for row in rows for a, m in zip(row, mean, strict=True))
    return float(Fraction(error) / Fraction(scatter))


@pytest.mark.parametrize("offset", [1e4, 1e7])
def test_a_large_mean_does_not_spoil_fvu(offset: float):
    plain = an_outcome(rows=200)
    y, y_hat = plain.y + offset, plain.y_hat + offset
    metric = FractionOfVarianceUnexplained()
    for piece in parts(replace(plain, y=y, y_hat=y_hat), [7, 8, 8, 90], [1, 2, 3, 4]):
        metric.update(piece)
    assert metric.result()["fvu"] == pytest.approx(exact_fvu(y, y_hat), rel=1e-7)


def test_the_mean_is_of_the_whole_set_and_not_of_a_batch():
    """Two batches that are constant within themselves: per-batch variance is 0, over both it is not."""
    low, high = torch.zeros(4, 1, dtype=torch.float64), torch.full((4, 1), 2.0, dtype=torch.float64)
    metric = FractionOfVarianceUnexplained()
    for y in (low, high):
        metric.update(replace(an_outcome(rows=4), y=y, y_hat=y + 0.5))
    assert metric.result() == {"fvu": 0.25, "explained_variance": 0.75}


def test_a_row_without_direction_has_cosine_0():
    y = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    y_hat = torch.tensor([[6.0, 8.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    result = tally_of([replace(an_outcome(rows=2), y=y, y_hat=y_hat)]).result()
    assert result["cosine"] == pytest.approx(0.5, abs=1e-15)


def test_dense_is_strictly_above_a_tenth():
    values = torch.zeros(30, 2)
    values[:3, 0] = 1  # exactly a tenth
    values[:4, 1] = 1
    result = tally_of([replace(an_outcome(rows=30), latents=Latents(values, 2))]).result()
    assert result["dense_fraction"] == 0.5


def test_what_has_no_meaning_is_nan():
    constant = torch.zeros(5, E, dtype=torch.float64)
    outcome = an_outcome(rows=5)
    same = replace(outcome, y=constant, y_hat=constant, ce_zero_ablated=outcome.ce_clean)
    result = tally_of([same]).result()
    for name in ("fvu", "explained_variance", "ev_uncentered", "loss_recovered"):
        assert math.isnan(result[name])
