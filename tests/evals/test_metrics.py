"""Metrics where the answer is known without a language model, and what holds of all of them.

Shape letters: B rows, E width, F latents.
"""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from panscope.evals.metrics import METRICS
from panscope.evals.metrics.uniformity import uniformity
from panscope.evals.moments import LAYOUT
from panscope.evals.outcome import Losses
from panscope.evals.probes import uniformity_of
from panscope.types import Latents
from tests.support.outcomes import E, F, an_outcome, tally_of, with_rows

DOUBLE = torch.float64


def test_no_two_metrics_share_a_name():
    ones = torch.ones(len(LAYOUT), dtype=DOUBLE)
    apart = [
        metric.numbers(dict.fromkeys([*metric.quantities, "count", "sequences"], ones[0]))
        for metric in METRICS.values()
    ]
    names = [name for numbers in apart for name in numbers]
    assert len(names) == len(set(names)) == len(LAYOUT.numbers(ones))
    assert set(LAYOUT.by_position.numbers(ones)) < set(names)


def test_sparse_and_dense_codes_give_the_same_numbers():
    sparse = an_outcome()
    dense = replace(sparse, latents=Latents(sparse.latents.dense(), F))
    found, expected = tally_of([dense]), tally_of([sparse])
    for name, value in expected.fields().items():
        if isinstance(value, float):
            assert found.fields()[name] == pytest.approx(value, rel=1e-12, nan_ok=True), name
        elif name != "intervals":
            assert found.fields()[name] == value, name
    for name, column in expected.firing.table().items():
        assert torch.allclose(found.firing.table()[name].double(), column.double(), rtol=1e-12, equal_nan=True), name


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
    plain = an_outcome(40)
    y, y_hat = plain.y + offset, plain.y_hat + offset
    result = tally_of([with_rows(y, y_hat, sequences=40)]).fields()
    assert result["fvu"] == pytest.approx(exact_fvu(y, y_hat), rel=1e-7)
    assert result["intervals"]["fvu"] == pytest.approx(
        tally_of([with_rows(plain.y, plain.y_hat, sequences=40)]).fields()["intervals"]["fvu"], rel=1e-6
    )


def test_the_mean_is_of_the_whole_set_and_not_of_a_batch():
    """Two batches that are constant within themselves: per-batch variance is 0, over both it is not."""
    low, high, middle = (
        torch.zeros(4, 1, dtype=DOUBLE),
        torch.full((4, 1), 2.0, dtype=DOUBLE),
        torch.ones(1, dtype=DOUBLE),
    )
    result = tally_of([with_rows(y, y + 0.5, centre=middle) for y in (low, high)]).fields()
    assert (result["fvu"], result["explained_variance"]) == (0.25, 0.75)
    assert (result["fvu_scalar"], result["ev_token_mean"], result["ev_uncentered"]) == (0.25, 0.75, 0.875)


def test_the_estimators_of_other_papers_part_where_they_should():
    """Two rows, dimensions of unlike means: by hand."""
    y = torch.tensor([[1.0, 10.0], [3.0, 10.0]], dtype=DOUBLE)
    y_hat = torch.tensor([[1.5, 10.0], [3.0, 9.0]], dtype=DOUBLE)
    result = tally_of([with_rows(y, y_hat)]).fields()
    assert result["fvu"] == pytest.approx(1.25 / 2)
    assert result["ev_uncentered"] == pytest.approx(1 - 1.25 / 210)
    assert result["fvu_scalar"] == pytest.approx(1.25 / (25 + 16 + 9 + 16))  # the mean of all entries is 6
    assert result["ev_token_mean"] == pytest.approx(1 - (0.25 / 1 + 1 / 1) / 2)
    assert result["nmse_token"] == pytest.approx((0.25 / 101 + 1 / 109) / 2)
    assert result["mse"] == pytest.approx(1.25 / 4)


def test_rows_without_size_or_scatter_are_left_out_of_means_of_ratios():
    y = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]], dtype=DOUBLE)
    y_hat = torch.tensor([[7.0, 7.0], [3.0, 3.0], [1.0, 0.0]], dtype=DOUBLE)
    result = tally_of([with_rows(y, y_hat, centre=y[2])]).fields()
    assert result["nmse_token"] == pytest.approx((1 / 25 + 1 / 2) / 2)
    assert result["l2_ratio"] == pytest.approx((math.sqrt(18) / 5 + 1 / math.sqrt(2)) / 2)
    assert result["ev_token_mean"] == pytest.approx(1 - (98 / 2 + 1 / 13) / 2)


def test_a_coder_that_shrinks_by_half():
    y = an_outcome().y
    result = tally_of([with_rows(y, y / 2)]).fields()
    for name in ("relative_reconstruction_bias", "l2_ratio"):
        assert result[name] == pytest.approx(0.5, rel=1e-12)
    assert result["ev_uncentered"] == pytest.approx(0.75, rel=1e-12)
    assert result["nmse_token"] == pytest.approx(0.25, rel=1e-12)
    assert result["cosine"] == pytest.approx(1, rel=1e-12)


def test_scaling_the_reconstruction_helps_only_where_the_bias_is_not_1():
    """At the best factor the bias is 1: that is what it says."""
    outcome = an_outcome()
    factor = float((outcome.y * outcome.y_hat).sum() / outcome.y_hat.square().sum())
    biases = [
        tally_of([with_rows(outcome.y, c * outcome.y_hat)]).fields()["relative_reconstruction_bias"]
        for c in (1, factor)
    ]
    assert biases == [pytest.approx(1 / factor, rel=1e-12), pytest.approx(1, rel=1e-12)]


def test_a_row_without_direction_has_cosine_0():
    y = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0]], dtype=DOUBLE)
    y_hat = torch.tensor([[6.0, 8.0, 0.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    assert tally_of([with_rows(y, y_hat)]).fields()["cosine"] == pytest.approx(0.5, abs=1e-15)


def test_dense_is_strictly_above_a_tenth():
    values = torch.zeros(30, 2)
    values[:3, 0] = 1  # exactly a tenth
    values[:4, 1] = 1
    result = tally_of([replace(an_outcome(6, 5), latents=Latents(values, 2))]).fields()
    assert result["dense_fraction"] == 0.5


def test_never_fired_looks_at_the_first_tokens_alone(monkeypatch: pytest.MonkeyPatch):
    """Latent n fires first at token 4 n, whatever the batches, which here begin in the middle of a window."""
    monkeypatch.setattr("panscope.evals.firing.WINDOWS", (1, 4, 5, 12, 13, 20, 21))
    values = torch.zeros(20, 5)
    values[torch.arange(5) * 4, torch.arange(5)] = 1
    parts = [(0, 5), (5, 15), (15, 20)]
    batches = [
        replace(an_outcome(end - start, 1, first_row=start), latents=Latents(values[start:end], 5))
        for start, end in parts
    ]
    expected = {"1": 0.8, "4": 0.8, "5": 0.6, "12": 0.4, "13": 0.2, "20": 0.0}
    for order in (batches, batches[::-1]):
        result = tally_of(order).fields()
        assert result["never_fired"] == pytest.approx(expected)
        assert (result["dead_fraction"], result["dead_window"]) == (0, 20)


def test_the_histogram_has_eight_bars_a_decade():
    values = torch.zeros(1000, 5)
    for latent, firings in enumerate((1, 10, 11, 1000)):
        values[:firings, latent] = 1
    outcome = replace(an_outcome(1000, 1), latents=Latents(values, 5))
    frequency = tally_of([outcome]).fields()["frequency"]
    assert len(frequency["log10_edges"]) == 57
    assert (frequency["log10_edges"][0], frequency["log10_edges"][-1], frequency["never"]) == (-7, 0, 1)
    bars = {round(frequency["log10_edges"][n], 3): count for n, count in enumerate(frequency["latents"]) if count}
    assert bars == {-3.0: 1, -2.0: 2, -0.125: 1}


def test_the_mean_and_the_largest_value_of_each_latent():
    values = torch.tensor([[0.5, 0.0, 0.0], [1.5, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    table = tally_of([replace(an_outcome(2, 2), latents=Latents(values, 3))]).firing.table()
    assert table["firings"].tolist() == [2, 0, 1]
    assert table["sequences"].tolist() == [1, 0, 1]
    assert table["frequency"].tolist() == [0.5, 0, 0.25]
    assert table["mean"].tolist() == [1.0, pytest.approx(math.nan, nan_ok=True), 2.0]
    assert table["max"].tolist() == [1.5, 0, 2.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_codes_in_half_precision_are_counted_and_summed_in_full(dtype: torch.dtype):
    """Bfloat16 counts no further than 256, and float16 no further than 65,504."""
    rows = 70_000
    outcome = replace(an_outcome(2, rows // 2), latents=Latents(torch.ones(rows, 2, dtype=dtype), 2))
    sparse = Latents(torch.ones(rows, 2, dtype=dtype), 2, torch.tensor([[0, 1]]).expand(rows, 2))
    for some in (outcome, replace(outcome, latents=sparse)):
        tally = tally_of([some], positions=rows)
        fields, table = tally.fields(), tally.firing.table()
        assert (fields["l0"], fields["l1"], fields["dense_fraction"]) == (2, 2, 1)
        assert (table["firings"].tolist(), table["mean"].tolist()) == ([rows, rows], [1, 1])


def test_uniformity_is_1_where_all_matter_the_same_and_a_share_where_one_does():
    parts = torch.tensor([[2.0, -2.0, 0.0, 2.0], [5.0, 1e-200, 0.0, 0.0], [0.5, 0.25, -0.25, 0.0]], dtype=DOUBLE)
    entropy = 1.5 * math.log(2)
    assert uniformity(parts).tolist() == pytest.approx([1, 0.5, math.exp(entropy) / 3], rel=1e-12)


def test_uniformity_leaves_out_tokens_where_nothing_matters():
    outcome = an_outcome(3, 1)
    codes = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 3.0]])
    W_dec, gradient = torch.eye(2), torch.tensor([[1.0, 1.0], [1.0, 1.0], [3.0, -2.0]])
    found = uniformity_of(Latents(codes, 2), W_dec, gradient, outcome.span.rows)
    assert found.values.tolist() == pytest.approx([1, 1])
    assert found.places.sequences.tolist() == [0, 2]


def test_what_has_no_meaning_is_nan():
    constant = torch.zeros(5, E, dtype=DOUBLE)
    outcome = with_rows(constant, constant)
    nats = outcome.ce_clean
    result = tally_of([replace(outcome, zero_ablated=Losses(nats, nats, nats))]).fields()
    undefined = [
        *("fvu", "explained_variance", "ev_uncentered", "fvu_scalar", "ev_token_mean", "nmse_token"),
        *("relative_reconstruction_bias", "l2_ratio", "loss_recovered", "uniformity"),
    ]
    assert [name for name in undefined if not math.isnan(result[name])] == []
    assert result["intervals"] == {}  # of one sequence


def test_what_has_no_meaning_has_no_interval_and_spoils_no_other():
    constant = torch.zeros(6, E, dtype=DOUBLE)
    intervals = tally_of([with_rows(constant, constant, sequences=3)]).fields()["intervals"]
    assert all(math.isnan(end) for name in ("fvu", "uniformity", "l2_ratio") for end in intervals[name])
    assert all(math.isfinite(end) for name in ("delta_loss", "mse", "l0", "kl") for end in intervals[name])
