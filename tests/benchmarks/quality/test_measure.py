"""The measure and the curves of `benchmarks.quality.measure`, against numbers worked out by hand."""

import math

import pytest
import torch

from benchmarks.quality.measure import Quality, fvu_at, measure


def test_measure_counts_errors_and_latents() -> None:
    """5,000 rows, more than one chunk: every row is reconstructed to 3/4 by latent 0, odd ones use latent 1 too."""
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) + 2
    odd = torch.arange(5000) % 2

    def coder(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        which = torch.stack([torch.ones(len(rows)), odd[: len(rows)].float(), torch.zeros(len(rows))], dim=1)
        return which, rows * 0.75

    found = measure(coder, x)
    y = x.double()
    assert found.l0 == 1.5
    assert found.dead == 1 / 3
    expected = float((y / 4).square().sum() / ((y - y.mean(0)) ** 2).sum())
    assert found.fvu == pytest.approx(expected, rel=1e-6)  # 0.75 x is rounded to float32


def test_a_bent_curve_is_met_between_its_points() -> None:
    """A parabola in the logarithms comes back exactly, whatever the order of the points; so does a power law of two."""

    def bent(l0: float) -> float:
        return math.exp(-1 - 0.3 * math.log(l0) - 0.1 * math.log(l0) ** 2)

    curve = [Quality(l0, bent(l0), 0) for l0 in (32.0, 4.0, 16.0, 8.0)]
    for l0 in (4.0, 5.0, 8.0, 13.7, 32.0):
        assert fvu_at(l0, curve) == pytest.approx(bent(l0), rel=1e-12)
    assert fvu_at(9, [Quality(4, 0.5, 0), Quality(16, 0.25, 0)]) == pytest.approx(1 / 3)  # 1 / sqrt(l0)


def test_nothing_is_guessed_beyond_the_ends() -> None:
    """But for the half percent by which a TopK row may use fewer than K latents."""
    curve = [Quality(4, 0.5, 0), Quality(8, 0.25, 0)]
    assert fvu_at(3.9, curve) == fvu_at(8.1, curve) == fvu_at(4, []) == math.inf
    assert fvu_at(8.02, curve) == pytest.approx(0.25)
    assert fvu_at(8.02, [Quality(8, 0.25, 0)]) == pytest.approx(0.25)
