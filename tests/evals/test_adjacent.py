"""Cosines and norms of adjacent layers against plain float64 loops.

Shape letters: B rows, D width of a site.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.evals.adjacent import AdjacentLayers
from panscope.types import Site

SITES = [Site(layer, "resid_post") for layer in (1, 2, 5)]
B, D = 30, 4


def some_rows(seed: int = 0) -> dict[Site, Tensor]:
    """Each layer is the one before it and something new, far from 0."""
    g = torch.Generator().manual_seed(seed)
    rows, x = {}, torch.tensor([10.0, 0.0, -3.0, 1.0]).expand(B, D)
    for site in SITES:
        x = x + torch.randn(B, D, generator=g)
        rows[site] = x
    return rows


def means_of(rows: dict[Site, Tensor]) -> dict[Site, Tensor]:
    return {site: x.double().mean(dim=0) for site, x in rows.items()}


def measured(rows: dict[Site, Tensor], means: dict[Site, Tensor]) -> AdjacentLayers:
    adjacent = AdjacentLayers(SITES)
    adjacent.update(rows, means)
    return adjacent


def by_hand(rows: dict[Site, Tensor], means: dict[Site, Tensor]) -> dict[str, dict[str, float]]:
    raw = {site: x.double().tolist() for site, x in rows.items()}
    mean = {site: x.tolist() for site, x in means.items()}
    centred = {s: [[u - m for u, m in zip(row, mean[s], strict=True)] for row in raw[s]] for s in SITES}
    numbers = {}
    for site, following in zip(SITES, [*SITES[1:], None], strict=True):
        cosine = math.nan
        if following:
            pairs = list(zip(centred[site], centred[following], strict=True))
            dots = [math.fsum(a * b for a, b in zip(u, v, strict=True)) for u, v in pairs]
            cosine = math.fsum(d / math.hypot(*u) / math.hypot(*v) for d, (u, v) in zip(dots, pairs, strict=True)) / B
        numbers[str(site)] = {
            "cosine_to_next": cosine,
            "norm": math.fsum(math.hypot(*row) for row in raw[site]) / B,
            "norm_centred": math.fsum(math.hypot(*row) for row in centred[site]) / B,
        }
    return numbers


def close(expected: dict[str, dict[str, float]]) -> Any:
    return {site: pytest.approx(numbers, rel=1e-12, nan_ok=True) for site, numbers in expected.items()}


def test_every_number_is_its_definition():
    rows = some_rows()
    means = means_of(rows)
    expected = by_hand(rows, means)
    adjacent = measured(rows, means)
    assert adjacent.by_site() == close(expected)
    mean = (expected["L01.resid_post"]["cosine_to_next"] + expected["L02.resid_post"]["cosine_to_next"]) / 2
    assert adjacent.numbers() == {"adjacent_cosine": pytest.approx(mean, rel=1e-12)}
    assert list(adjacent.by_site()) == ["L01.resid_post", "L02.resid_post", "L05.resid_post"]


def test_without_taking_means_away_any_two_layers_look_alike():
    rows = some_rows()
    raw = measured(rows, {site: torch.zeros(D, dtype=torch.float64) for site in SITES})
    assert raw.numbers()["adjacent_cosine"] > measured(rows, means_of(rows)).numbers()["adjacent_cosine"] + 0.1
    assert all(numbers["norm"] == numbers["norm_centred"] for numbers in raw.by_site().values())


@pytest.mark.parametrize("cut", [0, 11, B])
def test_merged_parts_equal_one_pass(cut: int):
    rows = some_rows()
    means = means_of(rows)
    first = measured({site: x[:cut] for site, x in rows.items()}, means)
    second = measured({site: x[cut:] for site, x in rows.items()}, means)
    before = second.state_dict()
    merged = AdjacentLayers(SITES)
    merged.merge(first)
    merged.merge(second)
    whole = measured(rows, means)
    assert merged.by_site() == close(whole.by_site())
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())


def test_a_saved_state_goes_on():
    rows, others = some_rows(1), some_rows(2)
    means = means_of(rows)
    whole = measured(rows, means)
    resumed = AdjacentLayers(SITES)
    resumed.load_state_dict(whole.state_dict())
    whole.update(others, means)
    resumed.update(others, means)
    assert resumed.by_site() == close(whole.by_site())


def test_sites_may_come_in_any_order():
    rows = some_rows()
    adjacent = AdjacentLayers(SITES[::-1])
    adjacent.update(rows, means_of(rows))
    assert adjacent.by_site() == close(by_hand(rows, means_of(rows)))


def test_a_row_at_the_mean_has_no_direction():
    one, two = SITES[:2]
    rows = {one: torch.zeros(2, D), two: torch.ones(2, D)}
    rows[one][1, 0] = 1
    adjacent = AdjacentLayers([one, two])
    adjacent.update(rows, {site: torch.zeros(D, dtype=torch.float64) for site in (one, two)})
    assert adjacent.numbers()["adjacent_cosine"] == pytest.approx((0 + 0.5) / 2)


def test_one_layer_has_no_neighbour():
    adjacent = AdjacentLayers(SITES[:1])
    adjacent.update({SITES[0]: torch.ones(2, D)}, {SITES[0]: torch.zeros(D, dtype=torch.float64)})
    assert math.isnan(adjacent.numbers()["adjacent_cosine"])
    assert adjacent.by_site()["L01.resid_post"]["norm"] == pytest.approx(2.0)


def test_sites_of_two_kinds_are_refused():
    with pytest.raises(AssertionError):
        AdjacentLayers([Site(0, "resid_post"), Site(1, "mlp_out")])
