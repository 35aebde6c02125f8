"""Summary statistics of a distribution."""

import math
import statistics

import numpy as np
import pytest
import torch

from panscope.geometry.spread import LEVELS, largest, share, spread


def test_against_the_standard_library():
    values = np.random.default_rng(0).normal(size=101)
    found = spread(torch.from_numpy(values))
    assert found["mean"] == pytest.approx(statistics.fmean(values), abs=1e-14)
    assert found["variance"] == pytest.approx(statistics.variance(values), rel=1e-12)
    assert found["sem"] == pytest.approx(statistics.stdev(values) / math.sqrt(101), rel=1e-12)
    assert (found["min"], found["max"]) == (values.min(), values.max())
    assert found["quantiles"] == {f"{p:g}": np.quantile(values, p, method="inverted_cdf") for p in LEVELS}


def test_what_is_undefined():
    nothing, one = spread(torch.empty(0)), spread(torch.tensor([0.25]))
    assert all(math.isnan(nothing[name]) for name in ("mean", "variance", "sem", "min", "max"))
    assert all(math.isnan(value) for value in nothing["quantiles"].values())
    assert (one["mean"], one["min"], one["max"], one["quantiles"]["0.5"]) == (0.25,) * 4
    assert math.isnan(one["variance"]) and math.isnan(one["sem"])
    assert math.isnan(share(torch.empty(0, dtype=torch.bool))) and math.isnan(largest(torch.empty(0)))
    assert (share(torch.tensor([True, False, True, True])), largest(torch.tensor([1.0, 3.0]))) == (0.75, 3)


def test_small_differences_survive_a_large_mean():
    values = 1 + 1e-7 * torch.arange(10, dtype=torch.float64)
    assert spread(values)["variance"] == pytest.approx(statistics.variance(values.tolist()), rel=1e-6)
