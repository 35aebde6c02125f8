"""Distributions over layers against loops over every layer, latent and token in float64.

Shape letters: L layers, B rows, F latents, K codes a row.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.evals.layers import LayerDistribution
from panscope.types import Latents, NonFiniteError

LAYERS = (2, 5, 6, 11)
L, B, F, K = 4, 25, 9, 3


def some_codes(seed: int = 0) -> list[Latents]:
    """Even codes at each layer: some latents prefer layers, the last never fires, some places are unused."""
    g = torch.Generator().manual_seed(seed)
    codes = []
    for layer in range(L):
        weights = torch.rand(F, generator=g) ** 2 + 0.3 * (torch.arange(F) % L == layer)
        weights[-1] = 0
        indices = torch.multinomial(weights.expand(B, F), K, generator=g)
        values = torch.rand(B, K, generator=g) * (torch.rand(B, K, generator=g) > 0.2)
        codes.append(Latents(values, F, indices))
    return codes


def measured(*batches: list[Latents], layers: tuple[int, ...] = LAYERS) -> LayerDistribution:
    distribution = LayerDistribution(layers, batches[0][0].width)
    for batch in batches:
        distribution.update(batch)
    return distribution


def nested(codes: list[Latents]) -> list[list[list[float]]]:
    """a[l][t][j]."""
    return [one.dense().double().tolist() for one in codes]


def spread_of(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The weighted variance of (layer, weight) pairs times the weights' sum, and that sum; (0, 0) of none."""
    total = math.fsum(weight for _, weight in pairs)
    if not total:
        return 0.0, 0.0
    mean = math.fsum(layer * weight for layer, weight in pairs) / total
    return math.fsum(weight * (layer - mean) ** 2 for layer, weight in pairs), total


def exact_numbers(codes: list[Latents]) -> dict[str, float]:
    """The three variances by their definitions, over every (layer, latent, token)."""
    a = nested(codes)
    rows = range(len(a[0]))
    every = [(float(LAYERS[i]), a[i][t][j]) for i in range(L) for t in rows for j in range(F)]
    by_latent = [spread_of([(LAYERS[i], a[i][t][j]) for i in range(L) for t in rows]) for j in range(F)]
    by_both = [spread_of([(LAYERS[i], a[i][t][j]) for i in range(L)]) for j in range(F) for t in rows]
    spread, total = spread_of(every)
    whole, latent, both = (
        x / total for x in (spread, math.fsum(s for s, _ in by_latent), math.fsum(s for s, _ in by_both))
    )
    stds = [math.sqrt(s / n) for s, n in by_latent if n]
    mean = math.fsum(stds) / len(stds)
    variance = math.fsum((x - mean) ** 2 for x in stds) / len(stds)
    std, sem = math.sqrt(variance), math.sqrt(variance / len(stds))
    return {
        "layer_variance": whole,
        "layer_variance_given_latent": latent,
        "layer_variance_given_latent_token": both,
        "ratio_latent": latent / whole,
        "ratio_token": both / latent,
        "layer_std_mean": mean,
        "layer_std_var": variance,
        "layer_std_std": std,
        "layer_std_sem": sem,
        "layer_std_mean_over_n_layers": mean / L,
        "layer_std_var_over_n_layers": variance / L**2,
        "layer_std_std_over_n_layers": std / L,
        "layer_std_sem_over_n_layers": sem / L,
    }


def legacy_numbers(codes: list[Latents]) -> dict[str, float]:
    """The published estimator on a dense tensor: shares, 0 where undefined, and plain means."""
    a = torch.stack([one.dense().double() for one in codes])
    shares = (a / a.sum(0)).nan_to_num(0.0)
    places = torch.arange(L, dtype=torch.float64)

    def variance(x: Tensor) -> Tensor:
        return torch.tensordot(places**2, x, 1) - torch.tensordot(places, x, 1) ** 2

    whole = float(variance(shares.mean((1, 2))))
    latent, both = float(variance(shares.mean(1)).mean()), float(variance(shares).mean())
    return {
        "legacy_layer_variance": whole,
        "legacy_layer_variance_given_latent": latent,
        "legacy_layer_variance_given_latent_token": both,
        "legacy_ratio_latent": latent / whole,
        "legacy_ratio_token": both / latent,
    }


def close(expected: Any, tolerance: float = 1e-12) -> Any:
    return pytest.approx(expected, rel=tolerance, abs=1e-13)


@pytest.mark.parametrize("seed", range(3))
def test_every_number_is_its_definition(seed: int):
    codes = some_codes(seed)
    expected = exact_numbers(codes) | legacy_numbers(codes)
    assert measured(codes).numbers() == close(expected)
    assert 0 < expected["ratio_token"] < 1
    assert abs(expected["ratio_latent"] / expected["legacy_ratio_latent"] - 1) > 0.01


def test_the_law_of_total_variance_holds():
    distribution = measured(some_codes())
    numbers, latents = distribution.numbers(), distribution.latents()
    totals = torch.as_tensor(distribution.table()["total"]).view(F, L).sum(1)
    weights, fired = totals / totals.sum(), totals > 0
    means = latents["layer_mean"][fired]
    mean = (weights[fired] * means).sum()
    between = (weights[fired] * (means - mean) ** 2).sum()
    within = (weights[fired] * latents["layer_var"][fired]).sum()
    assert numbers["layer_variance_given_latent"] == close(float(within))
    assert numbers["layer_variance"] == close(float(within + between))
    assert numbers["layer_variance_given_latent_token"] < numbers["layer_variance_given_latent"]


def test_the_table_counts_and_sums_at_real_layers():
    codes = some_codes()
    a = nested(codes)
    table = measured(codes).table()
    rows = list(zip(*(table[name].tolist() for name in ("latent", "layer", "firings", "total")), strict=True))
    expected = [
        (j, LAYERS[i], sum(1 for row in a[i] if row[j] > 0), close(math.fsum(row[j] for row in a[i])))
        for j in range(F)
        for i in range(L)
    ]
    assert rows == expected


def test_each_latents_distribution():
    codes = some_codes()
    a = nested(codes)
    latents = measured(codes).latents()
    for j in range(F - 1):
        pairs = [(float(LAYERS[i]), a[i][t][j]) for i in range(L) for t in range(B)]
        spread, total = spread_of(pairs)
        assert float(latents["layer_mean"][j]) == close(math.fsum(x * w for x, w in pairs) / total)
        assert float(latents["layer_var"][j]) == close(spread / total)
        assert float(latents["layer_std"][j]) == close(math.sqrt(spread / total))
    assert all(bool(column[F - 1].isnan()) for column in latents.values())


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(0, B), min_size=3, max_size=3),
    order=st.permutations(range(4)),
    split=st.integers(1, 3),
)
def test_merged_parts_equal_one_pass(cuts: list[int], order: list[int], split: int):
    codes = some_codes()
    edges = [0, *sorted(cuts), B]
    parts = [[one.select(slice(*edges[i : i + 2])) for one in codes] for i in order]
    first, second = measured(*parts[:split]), measured(*parts[split:])
    merged = LayerDistribution(LAYERS, F)
    merged.merge(first)
    merged.merge(second)
    whole = measured(codes)
    assert merged.numbers() == close(whole.numbers())
    for name, column in whole.table().items():
        assert merged.table()[name].tolist() == close(column.tolist())


def test_merging_leaves_the_other_as_it_is():
    first, second = measured(some_codes(1)), measured(some_codes(2))
    before = second.numbers()
    alone = LayerDistribution(LAYERS, F)
    alone.merge(second)
    alone.merge(first)
    first.merge(second)
    first.merge(LayerDistribution(LAYERS, F))
    assert second.numbers() == before
    assert first.numbers() == close(alone.numbers())


def test_a_saved_state_goes_on():
    whole = measured(some_codes(1), some_codes(2))
    saved = measured(some_codes(1)).state_dict()
    assert all(isinstance(value, Tensor) for value in saved.values())
    resumed = LayerDistribution(LAYERS, F)
    resumed.load_state_dict(saved)
    resumed.update(some_codes(2))
    assert resumed.numbers() == whole.numbers()


@pytest.mark.parametrize("form", ["dense", "ragged"])
def test_dense_even_and_ragged_codes_agree(form: str):
    codes = some_codes()
    other = [Latents(one.dense(), F) if form == "dense" else one.ragged() for one in codes]
    assert measured(other).numbers() == close(measured(codes).numbers())


def test_a_latent_at_one_layer_has_no_spread_at_all():
    # A weighted mean rounds: x * 11 / x need not be 11 in float64, and a ratio of such errors would look like a result.
    codes = [Latents(torch.zeros(B, F, dtype=torch.float64), F) for _ in range(L)]
    for latent in range(F):
        codes[latent % L].values[:, latent] = torch.rand(B, dtype=torch.float64)
    numbers = measured(codes).numbers()
    assert numbers["layer_variance"] > 1
    assert numbers["layer_variance_given_latent"] == numbers["layer_variance_given_latent_token"] == 0
    assert numbers["ratio_latent"] == numbers["layer_std_mean"] == 0
    assert math.isnan(numbers["ratio_token"])


@pytest.mark.parametrize("rows", [0, 5])
def test_without_any_activation_numbers_are_undefined(rows: int):
    distribution = measured([Latents(torch.zeros(rows, K), F, torch.zeros(rows, K, dtype=torch.long))] * L)
    numbers = distribution.numbers()
    assert all(math.isnan(numbers[name]) for name in exact_numbers(some_codes()))
    assert distribution.table()["firings"].sum() == 0


def test_wide_codes_are_never_made_dense(monkeypatch: pytest.MonkeyPatch):
    """[B, L, F] would be 3 GB here, and the answer is known: latent 7 at layers 0 and 2, half and half."""

    def refuse(codes: Latents) -> Tensor:
        raise AssertionError("codes were made dense")

    monkeypatch.setattr(Latents, "dense", refuse)
    rows, width = 2000, 65536
    at = torch.full((rows, 1), 7)
    codes = [Latents(torch.full((rows, 1), value), width, at) for value in (1.0, 0.0, 1.0)]
    numbers = measured(codes, layers=(0, 1, 2)).numbers()
    assert numbers["layer_variance_given_latent_token"] == close(1.0)
    assert numbers["ratio_token"] == close(1.0)


def test_nan_is_refused_with_its_layer():
    codes = some_codes()
    codes[2].values[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match="layer 6 "):
        measured(codes)


def test_parts_of_other_layers_are_refused():
    with pytest.raises(AssertionError):
        measured(some_codes()).merge(measured(some_codes(), layers=(0, 1, 2, 3)))
