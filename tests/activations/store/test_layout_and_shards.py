"""Shards: other safetensors readers can open them, data is page-aligned, and damaged files are refused."""

import json
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.activations.store import shard as shard_module
from panscope.activations.store.layout import PAGE, Cut, StoredColumn, cut_for
from panscope.activations.store.shard import Shard, ShardRecord, check_header, writing_shard
from panscope.types import UserError
from tests.support.store_maker import MLP, RESID, WIDTHS, make_store, row_of, tokens_of


def _blocks(rows: int, size: int) -> list[torch.Tensor]:
    return list(torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows)).split(size))


def _write(path: Path, column: StoredColumn, blocks: list[torch.Tensor]) -> ShardRecord:
    with writing_shard(path, column) as writer:
        for block in blocks:
            writer.write(block)
        return writer.finish("this")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_reader_of_safetensors_reads_every_column(tmp_path: Path, dtype: torch.dtype) -> None:
    store = make_store(tmp_path / "s", 150, dtype=str(dtype).removeprefix("torch."))
    for column in store.columns([RESID, MLP]):
        found = []
        for number in range(3):
            path = tmp_path / "s" / column.shard(number)
            with safetensors.safe_open(path, "pt") as file:
                assert list(file.keys()) == ["rows"]
                found.append(file.get_tensor("rows"))
            length = int.from_bytes(path.read_bytes()[:8], "little")
            assert length + 8 == PAGE
            assert (path.stat().st_size - PAGE) == found[-1].nbytes
        rows = torch.cat(found)
        number = torch.arange(150)
        site = next((site for site in WIDTHS if str(site) in column.folder), None)
        expected = tokens_of(number) if site is None else row_of(site, number, WIDTHS[site]).to(dtype)
        assert rows.dtype == column.dtype
        assert torch.equal(rows, expected)


def test_rows_are_page_aligned_in_memory(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", 100)
    for column in store.columns([RESID, MLP]):
        assert store.shard(column, 0).rows.data_ptr() % PAGE == 0


@given(rows=st.integers(1, 2**40), width=st.integers(1, 2**20), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_every_header_fits_its_page(rows: int, width: int, dtype: torch.dtype) -> None:
    header = StoredColumn("any", width, dtype).header(rows)
    assert len(header) == PAGE
    told = json.loads(header[8:])["rows"]
    assert told["shape"] == [rows, width]
    assert told["data_offsets"][1] == rows * width * dtype.itemsize


@given(rows=st.integers(1, 10_000), blocks=st.integers(1, 20), block=st.integers(1, 100))
def test_a_cut_has_every_row_in_one_shard(rows: int, blocks: int, block: int) -> None:
    cut = Cut(blocks * block, block)
    sizes = [cut.rows_of(shard, rows) for shard in range(cut.shards(rows))]
    assert sum(sizes) == rows
    assert all(size == cut.shard_rows for size in sizes[:-1])
    assert 0 < sizes[-1] <= cut.shard_rows
    assert cut.rows_of(cut.shards(rows), rows) == 0


def test_shards_are_at_most_as_large_as_requested() -> None:
    cut = cut_for(2**30, 4096, 4608)
    assert cut.shard_rows % 4096 == 0
    assert cut.shard_rows * 4608 <= 2**30 < (cut.shard_rows + 4096) * 4608
    with pytest.raises(UserError, match=r"shard_gib gives shards of 1000 bytes.*set it to at least 0\.0176"):
        cut_for(1000, 4096, 4608)


def test_no_shard_exists_until_it_is_finished(tmp_path: Path) -> None:
    path, column = tmp_path / "0.safetensors", StoredColumn("any", 5, torch.float32)
    with pytest.raises(KeyboardInterrupt), writing_shard(path, column) as writer:
        writer.write(_blocks(8, 8)[0])
        assert not path.exists()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@given(
    rows=st.integers(1, 70),
    size=st.integers(1, 20),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    large=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_record_has_the_sums_and_a_checksum_for_every_block(
    tmp_path_factory: pytest.TempPathFactory, rows: int, size: int, dtype: torch.dtype, large: bool
) -> None:
    folder, blocks = tmp_path_factory.mktemp("shard"), _blocks(rows, size)
    column = StoredColumn("any", 5, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_module, "_LARGE_BLOCK_BYTES", 0 if large else 2**30)
        patch.setattr(shard_module, "_WRITEBACK_BYTES", 100)
        patch.setattr(shard_module, "_PIECE_ROWS", 7)
        record = _write(folder / "0.safetensors", column, blocks)
    x = torch.cat(blocks).to(dtype).double()
    assert record.rows == rows
    assert len(record.blocks) == len(blocks)
    assert record.sum_norm == pytest.approx(x.norm(dim=1).sum().item(), rel=1e-6)
    assert record.sum_squared_norm == pytest.approx(x.square().sum().item(), rel=1e-6)
    assert torch.tensor(record.total).tolist() == pytest.approx(x.sum(dim=0).tolist(), abs=1e-4)
    shard = Shard(folder / "0.safetensors", column, record, size)
    shard.check(0, rows)
    assert torch.equal(shard.rows.double(), x)


def test_only_requested_blocks_are_checked_and_the_error_names_rows(tmp_path: Path) -> None:
    path, column = tmp_path / "7.safetensors", StoredColumn("any", 5, torch.float32)
    record = _write(path, column, _blocks(20, 8))
    data = bytearray(path.read_bytes())
    data[PAGE + 9 * 20] ^= 1
    path.write_bytes(data)
    shard = Shard(path, column, record, 8)
    shard.check(0, 8)
    shard.check(16, 4)
    with pytest.raises(UserError, match=r"7\.safetensors' is damaged: rows 8 to 15 do not match .* in 7\.json"):
        shard.check(7, 2)


def test_size_and_header_are_checked_at_the_first_use(tmp_path: Path) -> None:
    path, column = tmp_path / "7.safetensors", StoredColumn("any", 5, torch.float32)
    record = _write(path, column, _blocks(20, 8))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"7\.safetensors' is damaged: it has 4495 bytes instead of 4496 for 20 rows"):
        Shard(path, column, record, 8)
    path.write_bytes(whole[:100] + b"x" + whole[101:])
    with pytest.raises(UserError, match="its header does not match its data"):
        Shard(path, column, record, 8)
    check_header(path, column, 20, whole[:PAGE])


def test_any_rows_can_be_fetched_ahead(tmp_path: Path) -> None:
    path, column = tmp_path / "7.safetensors", StoredColumn("any", 700, torch.float32)
    with writing_shard(path, column) as writer:
        for block in torch.randn(50, 700).split(16):
            writer.write(block)
        record = writer.finish("this")
    shard = Shard(path, column, record, 16)
    for first in range(50):
        shard.fetch_ahead(first, 50 - first)
        shard.fetch_ahead(first, 1)


def test_a_shard_larger_than_the_memory_can_be_mapped(tmp_path: Path) -> None:
    column = StoredColumn("any", 2**20, torch.float32)
    rows = 2**18  # 1 TiB as a sparse file with two pages on disk
    path = tmp_path / "7.safetensors"
    with path.open("wb") as file:
        file.write(column.header(rows))
        file.truncate(PAGE + rows * column.row_bytes)
    record = ShardRecord(of="this", rows=rows, xxh3="", blocks=("",) * 64)
    shard = Shard(path, column, record, rows // 64)
    assert shard.rows.shape == (rows, 2**20)
    assert shard.rows[-1].count_nonzero() == 0
