"""Norms of sites, compared with float64 sums over all rows."""

import pytest
import torch
from torch import Tensor

from panscope.activations.norms import measure_norms
from panscope.types import ActivationBatch, Site, UserError

SITES = (Site(0, "resid_post"), Site(3, "mlp_out"))


def _batches(rows: dict[Site, Tensor], size: int) -> list[ActivationBatch]:
    count = len(next(iter(rows.values())))
    numbers = torch.arange(count)
    whole = ActivationBatch(rows, numbers, numbers, numbers)
    return [whole.select(slice(first, first + size)) for first in range(0, count, size)]


@pytest.mark.parametrize(("size", "rows"), [(1, 37), (7, 37), (50, 37), (7, 50), (7, 1_000)])
def test_norms_of_the_first_rows(size: int, rows: int) -> None:
    values = {SITES[0]: torch.randn(50, 5) + 3, SITES[1]: 1e3 * torch.randn(50, 2, dtype=torch.bfloat16)}
    norms = measure_norms(iter(_batches(values, size)), rows)
    assert list(norms) == list(SITES)
    for site, x in values.items():
        x = x[:rows].double()
        assert norms[site].rows == len(x)
        # sums of at most 50 float64 numbers in another order differ by less than 50 rounding errors
        # (of their largest term); the means of squares have no cancellation, so theirs is relative
        slack = 50 * torch.finfo(torch.float64).eps * x.abs().max().item()
        length = x.square().sum(dim=1).sqrt()
        torch.testing.assert_close(norms[site].mean, x.mean(dim=0), rtol=0, atol=slack)
        assert norms[site].mean_norm == pytest.approx(length.mean().item(), rel=1e-14)
        assert norms[site].mean_squared_norm == pytest.approx(length.square().mean().item(), rel=1e-14)


def test_only_as_many_batches_as_needed_are_taken() -> None:
    batches = iter(_batches({SITES[0]: torch.ones(50, 5)}, 10))
    assert measure_norms(batches, 11)[SITES[0]].rows == 11
    assert len(list(batches)) == 3


def test_no_row_is_an_error() -> None:
    with pytest.raises(UserError, match="there is no row of activations"):
        measure_norms(iter([]), 10)
