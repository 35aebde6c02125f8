"""Reading a store: every row once per epoch, and bit-identical resumption from a small state."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.activations.store.files import LocalFiles
from panscope.activations.store.layout import StoredColumn
from panscope.activations.store.store import Store
from panscope.activations.store.stored import StoredRows
from panscope.activations.store.windows import Slice, Windows
from panscope.types import ActivationBatch, Site, UserError
from tests.support.store_maker import MLP, RESID, WIDTHS, make_store, row_of, tokens_of

ROWS = 210


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("stores") / "s", ROWS)


def _rows(store: Store, *, batch: int = 8, seed: int = 0, window: int = 48, part: Slice | None = None) -> StoredRows:
    windows = Windows(store.rows, window, store.manifest.cut, part)
    return StoredRows(store, (RESID, MLP), windows, batch=batch, seed=seed)


def _assert_same(a: list[ActivationBatch], b: list[ActivationBatch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.token_ids, y.token_ids)
        assert all(torch.equal(x.rows[site], y.rows[site]) for site in WIDTHS)


def _check_rows(batch: ActivationBatch) -> None:
    number = batch.token_ids
    assert torch.equal(torch.stack([number, batch.document_ids, batch.positions], dim=1), tokens_of(number))
    for site, width in WIDTHS.items():
        assert torch.equal(batch.rows[site], row_of(site, number, width))


@given(
    batch=st.integers(1, 250),
    window=st.integers(1, 250),
    seed=st.integers(0, 2),
    part=st.sampled_from([Slice(), Slice(2, 3), Slice(7, 7)]),
)
@settings(deadline=None, max_examples=60)
def test_an_epoch_gives_each_row_once(store: Store, batch: int, window: int, seed: int, part: Slice) -> None:
    rows = _rows(store, batch=batch, seed=seed, window=window, part=part)
    first, count = rows._windows.first, rows._windows.rows
    epochs = 3
    batches = list(islice(rows, -(-epochs * count // batch)))
    assert all(len(found) == batch for found in batches)
    for found in batches:
        _check_rows(found)
    tokens = torch.cat([found.token_ids for found in batches]).tolist()
    for epoch in range(epochs):
        assert sorted(tokens[epoch * count : (epoch + 1) * count]) == list(range(first, first + count))


def test_epochs_and_seeds_have_different_orders(store: Store) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        found = torch.cat([batch.token_ids for batch in islice(_rows(store, batch=7, seed=seed), 60)]).tolist()
        return found[epoch * ROWS : (epoch + 1) * ROWS]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize(("batch", "window"), [(8, 48), (30, 16), (64, 64), (33, 210), (250, 100)])
def test_a_reader_can_resume_at_any_batch(store: Store, batch: int, window: int) -> None:
    """Also across windows and epochs."""
    whole, states = _rows(store, batch=batch, window=window), []
    expected = []
    for _ in range(2 * ROWS // batch + 12):
        states.append(json.loads(json.dumps(whole.state_dict())))
        expected.append(next(whole))
    for stop, state in enumerate(states[:-10]):
        fresh = _rows(store, batch=batch, window=window)
        fresh.load_state_dict(state)
        _assert_same(list(islice(fresh, 10)), expected[stop : stop + 10])


@given(jumps=st.lists(st.integers(0, 60), max_size=6))
@settings(deadline=None, max_examples=30)
def test_one_reader_goes_back_and_forth(store: Store, jumps: list[int]) -> None:
    expected = list(islice(_rows(store), 64))
    rows = _rows(store)
    for jump in jumps:
        rows.load_state_dict(rows.state_dict() | {"given": jump})
        _assert_same(list(islice(rows, 3)), expected[jump : jump + 3])


def test_a_state_is_small_and_determines_the_epoch(store: Store) -> None:
    rows = _rows(store, batch=30)
    assert rows.epoch == 0
    epochs = []
    for _ in range(15):
        next(rows)
        epochs.append(rows.epoch)
        assert len(json.dumps(rows.state_dict())) < 200
    assert epochs == [0] * 7 + [1] * 7 + [2]


def test_other_sites_of_the_same_rows_come_in_the_same_order(store: Store) -> None:
    both = list(islice(_rows(store), 30))
    windows = Windows(store.rows, 48, store.manifest.cut)
    one = list(islice(StoredRows(store, (MLP,), windows, batch=8, seed=0), 30))
    assert all(list(batch.rows) == [MLP] for batch in one)
    assert all(torch.equal(a.rows[MLP], b.rows[MLP]) for a, b in zip(one, both, strict=True))


@pytest.mark.parametrize(("name", "value"), [("batch", 9), ("seed", 1), ("window", 16)])
def test_a_state_of_another_order_is_refused(store: Store, name: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"was written with {name}\w* = .*give the same store"):
        _rows(store, **{name: value}).load_state_dict(_rows(store).state_dict())  # type: ignore[arg-type]


def test_a_state_of_another_slice_or_store_is_refused(store: Store, tmp_path: Path) -> None:
    state = _rows(store).state_dict()
    with pytest.raises(UserError, match="was written with rows = "):
        _rows(store, part=Slice(1, 2)).load_state_dict(state)
    with pytest.raises(UserError, match="was written with store = "):
        _rows(make_store(tmp_path / "other", ROWS, seed=1)).load_state_dict(state)
    with pytest.raises(UserError, match="was written with batch = None"):
        _rows(store).load_state_dict({"tokens": {}})


def test_a_store_with_more_sites_is_the_same_store(tmp_path: Path) -> None:
    few = make_store(tmp_path / "few", ROWS, widths={MLP: 3})
    windows = Windows(few.rows, 48, few.manifest.cut)
    state = StoredRows(few, (MLP,), windows, batch=8, seed=0).state_dict()
    _rows(make_store(tmp_path / "few", ROWS)).load_state_dict(state)


def test_a_missing_site_is_named(store: Store) -> None:
    other = Site(9, "mlp_out")
    with pytest.raises(UserError, match=r"no site 'L09.mlp_out', only L01.mlp_out, L03.resid_post"):
        StoredRows(store, (other,), Windows(store.rows, 48, store.manifest.cut), batch=8, seed=0)


@given(first=st.integers(0, ROWS - 1), count=st.integers(1, ROWS))
@settings(deadline=None)
def test_rows_are_read_by_their_numbers(store: Store, first: int, count: int) -> None:
    count = min(count, ROWS - first)
    for site, column in zip((RESID, MLP), store.columns([RESID, MLP]), strict=False):
        found = store.read(column, first, count)
        assert torch.equal(found, row_of(site, torch.arange(first, first + count), WIDTHS[site]))


@given(index=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=40))
@settings(deadline=None)
def test_rows_are_taken_in_any_order(store: Store, index: list[int]) -> None:
    column = store.columns([MLP])[0]
    number = torch.tensor(index)
    assert torch.equal(store.take(column, number), row_of(MLP, number, WIDTHS[MLP]))


class _NonPersistentFiles(LocalFiles):
    """Files that may be replaced by others, as in a cache; `asked` has the names of all requested files."""

    is_persistent = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[str] = []

    def path(self, name: str) -> Path:
        self.asked.append(name)
        return super().path(name)


@pytest.mark.parametrize("batch", [8, 7, 100])
def test_a_released_shard_is_not_needed_again_in_its_epoch(store: Store, batch: int) -> None:
    """A batch of two windows has copied the rows of the first one before its shard is released."""
    files = _NonPersistentFiles(Path(store.where))
    rows = _rows(Store(files), batch=batch, window=64)
    batches = list(islice(rows, ROWS // batch))
    for found in batches:
        _check_rows(found)
    shards = [name for name in files.asked if name.endswith("safetensors")]
    assert len(set(shards[:12])) == 3 * 4  # the others may be of the first window of the next epoch


def test_a_reader_reset_to_an_earlier_state_verifies_released_shards_again(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    make_store(folder, ROWS)
    rows = _rows(Store(_NonPersistentFiles(folder)), batch=64, window=64)
    windows = rows._windows.order(0, 0).tolist()
    list(islice(rows, 3))
    path = folder / f"sites/L01.mlp_out/{windows[0]:05d}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.unlink()
    path.write_bytes(data)
    rows.load_state_dict(rows.state_dict() | {"given": 0})
    with pytest.raises(UserError, match="is damaged: rows"):
        list(islice(rows, 2))


def test_damage_in_a_window_is_reported_at_its_first_batch(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    make_store(folder, ROWS)
    path = folder / StoredColumn.of_site(MLP, 3, torch.float32).shard(2)
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)
    rows = _rows(Store.open(folder), batch=8, window=64)
    batches: list[ActivationBatch] = []
    with pytest.raises(UserError, match=r"L01.mlp_out/00002.safetensors' is damaged: rows 48 to 63"):
        while True:
            batches.append(next(rows))
    assert len(batches) < ROWS // 8
    given = torch.cat([batch.token_ids for batch in batches]) if batches else torch.empty(0)
    assert not ((given >= 128) & (given < 192)).any()
    with pytest.raises(UserError, match=r"L01.mlp_out/00002.safetensors' is damaged"):
        next(rows)
