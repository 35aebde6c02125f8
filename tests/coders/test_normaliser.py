"""The factors that bring activations to a common size, measured on rows scaled by them."""

import math
from typing import get_args

import pytest
import torch

from panscope.coders.normaliser import Kind, Normaliser, scale_for
from panscope.types import Site, UserError

SITE = Site(2, "mlp_out")


def scale_of(kind: Kind, rows: torch.Tensor) -> float:
    norms = rows.double().norm(dim=1)
    size = {"mean_norm": norms.mean().item(), "mean_squared_norm": norms.square().mean().item()}
    return scale_for(kind, SITE, d=rows.shape[1], **size)


def test_rows_have_the_size_that_was_asked_for() -> None:
    rows = torch.randn(500, 7).double() * torch.rand(500, 1).double() * 30
    assert (rows * scale_of("unit_rms", rows)).square().sum(dim=1).mean().item() == pytest.approx(1)
    assert (rows * scale_of("sqrt_d", rows)).norm(dim=1).mean().item() == pytest.approx(math.sqrt(7))
    assert scale_of("none", rows) == 1


def test_all_zero_rows_are_refused_with_the_site() -> None:
    for kind in get_args(Kind):
        if kind != "none":
            with pytest.raises(UserError, match=r"L02\.mlp_out.*all zero"):
                scale_of(kind, torch.zeros(5, 7))


@pytest.mark.parametrize("size", [math.inf, math.nan])
def test_sizes_that_are_not_finite_are_not_called_zero(size: float) -> None:
    with pytest.raises(UserError, match=r"L02\.mlp_out") as caught:
        scale_for("unit_rms", SITE, d=7, mean_norm=size, mean_squared_norm=size)
    assert "all zero" not in str(caught.value)


def test_factors_are_above_zero() -> None:
    with pytest.raises(UserError, match="scale_in is 0"):
        Normaliser.read({"kind": "none", "scale_in": 0, "scale_out": 1}, "config.json")
