"""Sites as text and in order, batches of rows, and codes that mean the same dense and sparse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panscope.types import SITE_KINDS, ActivationBatch, Latents, Site, UserError


@given(st.integers(0, 200), st.sampled_from(SITE_KINDS))
def test_a_site_reads_back_what_it_writes(layer: int, kind: str) -> None:
    site = Site(layer, kind)
    assert Site.parse(str(site)) == site


def test_the_written_form() -> None:
    assert str(Site(3, "mlp_out")) == "L03.mlp_out"
    assert str(Site(112, "resid_post")) == "L112.resid_post"
    assert Site.parse("L3.mlp_out") == Site(3, "mlp_out")


@pytest.mark.parametrize(
    "text", ["", "mlp_out", "L.mlp_out", "L-1.mlp_out", "L03.mlp_out ", " L03.mlp_out", "l03.mlp_out", "L03-mlp_out"]
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not understood"):
        Site.parse(text)


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'mlp'.*resid_post.*mlp_out"):
        Site.parse("L03.mlp")


def test_a_negative_layer_is_refused() -> None:
    with pytest.raises(UserError, match="-1"):
        Site(-1, "mlp_out")


def test_sites_sort_by_layer_as_a_number_then_by_kind() -> None:
    sites = [Site(10, "attn_z"), Site(2, "resid_post"), Site(100, "attn_z"), Site(2, "attn_out")]
    assert [str(site) for site in sorted(sites)] == ["L02.attn_out", "L02.resid_post", "L10.attn_z", "L100.attn_z"]


def batch_of(count: int, start: int) -> ActivationBatch:
    number = torch.arange(start, start + count)
    rows = {Site(0, "mlp_out"): number[:, None].float(), Site(1, "mlp_out"): -number[:, None].float().expand(-1, 3)}
    return ActivationBatch(rows, number + 1000, number + 2000, number + 3000)


def assert_holds(batch: ActivationBatch, numbers: list[int]) -> None:
    """Every column of `batch` belongs to the rows with these numbers."""
    expected = torch.tensor(numbers, dtype=torch.int64)
    assert len(batch) == len(numbers)
    assert batch.token_ids.equal(expected + 1000)
    assert batch.document_ids.equal(expected + 2000)
    assert batch.positions.equal(expected + 3000)
    assert batch.rows[Site(0, "mlp_out")].equal(expected[:, None].float())
    assert batch.rows[Site(1, "mlp_out")].equal(-expected[:, None].float().expand(-1, 3))


@pytest.mark.parametrize(
    ("index", "numbers"),
    [
        (torch.tensor([4, 0, 4]), [14, 10, 14]),
        (slice(1, 3), [11, 12]),
        (slice(0, 0), []),
        (torch.tensor([True, False, False, True, False]), [10, 13]),
    ],
)
def test_select_keeps_the_columns_aligned(index: Tensor | slice, numbers: list[int]) -> None:
    assert_holds(batch_of(5, 10).select(index), numbers)


def test_concatenate_keeps_order_and_undoes_select() -> None:
    assert_holds(ActivationBatch.concatenate([batch_of(2, 0), batch_of(0, 0), batch_of(3, 7)]), [0, 1, 7, 8, 9])
    whole = batch_of(6, 0)
    parts = [whole.select(slice(0, 2)), whole.select(slice(2, 6))]
    assert_holds(ActivationBatch.concatenate(parts), list(range(6)))


@given(st.integers(0, 4), st.integers(1, 6), st.data())
@settings(deadline=None)
def test_sparse_and_dense_codes_say_the_same(rows: int, width: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, width))
    values, indices = torch.zeros(rows, k), torch.zeros(rows, k, dtype=torch.int64)
    table = torch.zeros(rows, width)
    for b in range(rows):
        places = data.draw(st.permutations(range(width)))[:k]
        for j, place in enumerate(places):
            value = data.draw(st.sampled_from([0.0, 0.0, 0.5, 3.0]))
            values[b, j], indices[b, j], table[b, place] = value, place, value
    sparse, dense = Latents(values, width, indices), Latents(table, width)
    assert sparse.dense().equal(table)
    assert dense.dense().equal(table)
    for codes in (sparse, dense):
        assert codes.l0().tolist() == [sum(v > 0 for v in row) for row in table.tolist()]
        assert codes.l1().tolist() == [sum(row) for row in table.tolist()]
        assert codes.firings().dtype == torch.int64
        assert codes.firings().tolist() == [sum(row[f] > 0 for row in table.tolist()) for f in range(width)]


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (torch.tensor([2, 0, 2]), [2, 0, 2]),
        (slice(1, 3), [1, 2]),
        (slice(0, 0), []),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
)
def test_select_takes_the_codes_of_some_rows(index: Tensor | slice, rows: list[int]) -> None:
    values, indices = torch.tensor([[2.0, 0.5], [0.0, 1.0], [3.0, 4.0]]), torch.tensor([[3, 0], [1, 2], [0, 3]])
    sparse = Latents(values, 4, indices)
    for codes in (sparse, Latents(sparse.dense(), 4)):
        found = codes.select(index)
        assert found.width == 4
        assert (found.indices is None) == (codes.indices is None)
        assert found.dense().tolist() == [sparse.dense()[row].tolist() for row in rows]


def test_firings_may_ask_for_more_than_a_whiff() -> None:
    """Gao et al. count a latent as alive above 1e-3; the bound itself does not count."""
    codes = Latents(torch.tensor([[2.0, 1e-4], [0.5, 1e-3]]), 4, torch.tensor([[3, 0], [3, 1]]))
    for one in (codes, Latents(codes.dense(), 4)):
        assert one.firings().tolist() == [1, 1, 0, 2]
        assert one.firings(above=1e-3).tolist() == [0, 0, 0, 2]
        assert one.firings(above=0.5).tolist() == [0, 0, 0, 1]


def test_unused_places_may_repeat_an_index() -> None:
    codes = Latents(torch.tensor([[2.0, 0.0, 0.0]]), 4, torch.tensor([[1, 1, 1]]))
    assert codes.dense().tolist() == [[0.0, 2.0, 0.0, 0.0]]
    assert codes.l0().tolist() == [1]
    assert codes.firings().tolist() == [0, 1, 0, 0]


def test_gradients_flow_through_sparse_codes() -> None:
    values = torch.tensor([[1.0, 2.0]], requires_grad=True)
    dense = Latents(values, 3, torch.tensor([[2, 0]])).dense()
    (dense * torch.tensor([5.0, 6.0, 7.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[7.0, 5.0]]


def test_rows_of_ragged_codes_are_chosen_as_those_of_dense_ones():
    draw = torch.Generator().manual_seed(3)
    dense = torch.relu(torch.randn(9, 6, generator=draw))
    dense[4] = 0
    rows, latents = dense.nonzero().T
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (dense > 0).sum(dim=1).cumsum(0)])
    ragged = Latents(dense[rows, latents], 6, latents, starts)
    for index in (slice(2, 7), slice(0, 0), torch.tensor([8, 4, 4, 0]), torch.arange(9) % 2 == 0):
        assert torch.equal(ragged.select(index).dense(), dense[index])
