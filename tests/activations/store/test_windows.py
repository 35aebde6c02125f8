"""Windows and their order: every row once per epoch, disjoint and complete slices, and reproducible orders."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.activations.store.layout import Cut
from panscope.activations.store.windows import Slice, Windows
from panscope.types import UserError

CUTS = st.tuples(st.integers(1, 6), st.integers(1, 9)).map(lambda pair: Cut(pair[0] * pair[1], pair[1]))


def _visited(windows: Windows, seed: int = 0, epoch: int = 0) -> list[int]:
    return [
        windows.bounds(window)[0] + row
        for window in windows.order(seed, epoch).tolist()
        for row in windows.permutation(seed, epoch, window).tolist()
    ]


@given(rows=st.integers(1, 300), window=st.integers(1, 120), cut=CUTS, count=st.integers(1, 5), epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=300)
def test_slices_have_every_row_once(rows: int, window: int, cut: Cut, count: int, epoch: int) -> None:
    blocks = -(-rows // cut.block_rows)
    if count > blocks:
        with pytest.raises(UserError, match="use fewer slices"):
            Windows(rows, window, cut, Slice(1, count))
        return
    found: list[int] = []
    for index in range(1, count + 1):
        windows = Windows(rows, window, cut, Slice(index, count))
        mine = _visited(windows, 1, epoch)
        assert sorted(mine) == list(range(windows.first, windows.end))
        assert len(mine) == windows.rows > 0
        assert windows.first % cut.block_rows == 0
        found += sorted(mine)
    assert found == list(range(rows))


@given(rows=st.integers(1, 300), window=st.integers(1, 120), cut=CUTS)
def test_windows_are_parts_of_a_shard_or_whole_shards(rows: int, window: int, cut: Cut) -> None:
    windows = Windows(rows, window, cut)
    for first, count in map(windows.bounds, range(len(windows))):
        assert 0 < count <= max(window, cut.block_rows)
        assert count <= windows.window_rows
        assert first % cut.block_rows == 0
        if first % cut.shard_rows or count < cut.shard_rows:
            assert first // cut.shard_rows == (first + count - 1) // cut.shard_rows
        else:
            assert (first + count) % cut.shard_rows == 0 or first + count == rows


@given(rows=st.integers(1, 300), a=st.integers(1, 120), b=st.integers(1, 120), cut=CUTS, index=st.integers(1, 3))
@settings(max_examples=300)
def test_window_rows_identifies_the_windows(rows: int, a: int, b: int, cut: Cut, index: int) -> None:
    """A checkpoint stores only `window_rows`."""
    if -(-rows // cut.block_rows) < 3:
        return
    one, two = (Windows(rows, size, cut, Slice(index, 3)) for size in (a, b))
    if one.window_rows == two.window_rows:
        assert list(map(one.bounds, range(len(one)))) == list(map(two.bounds, range(len(two))))


@given(rows=st.integers(1, 300), window=st.integers(1, 120), cut=CUTS, epoch=st.integers(0, 3))
def test_windows_of_one_shard_follow_each_other(rows: int, window: int, cut: Cut, epoch: int) -> None:
    windows = Windows(rows, window, cut)
    shards = [windows.bounds(number)[0] // cut.shard_rows for number in windows.order(0, epoch).tolist()]
    changes = sum(a != b for a, b in pairwise(shards))
    assert changes == len(set(shards)) - 1


def test_seed_and_epoch_change_both_orders() -> None:
    windows = Windows(2000, 50, Cut(200, 10))
    orders = [windows.order(seed, epoch).tolist() for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    rows = [windows.permutation(seed, epoch, 3).tolist() for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert rows[0] == rows[1]
    assert len({tuple(order) for order in rows}) == 3
    assert windows.permutation(0, 0, 3).tolist() != windows.permutation(0, 0, 4).tolist()
    shards = [[number // 4 for number in order] for order in orders]
    assert len({tuple(dict.fromkeys(order)) for order in shards}) == 3


def test_a_row_may_be_at_any_position_of_its_window() -> None:
    windows = Windows(64, 64, Cut(64, 16))
    places = torch.stack([windows.permutation(0, epoch, 0).argsort() for epoch in range(400)])
    assert places.double().mean(dim=0).sub(31.5).abs().max() < 5  # five standard errors
    assert (places[:, 0] < 16).sum() in range(60, 141)


@pytest.mark.parametrize("text", ["2", "0/4", "5/4", "1/0", "-1/4", "1/4 ", "a/b", "01/4", "1.0/4"])
def test_an_invalid_slice_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"slice is .*: write the second of eight as 2/8"):
        Slice.parse(text)


def test_a_slice_is_formatted_as_it_is_parsed() -> None:
    assert str(Slice.parse("2/8")) == "2/8"
    assert Slice.parse("1/1") == Slice()
