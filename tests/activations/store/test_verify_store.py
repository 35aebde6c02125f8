"""`verify` names every damaged file of a store with its rows; see test_store_damage.py for kinds of damage."""

from pathlib import Path

import pytest

from panscope.activations.store.files import LocalFiles
from panscope.activations.store.layout import PAGE
from panscope.activations.store.store import Store
from panscope.activations.store.verify import verify
from panscope.activations.store.writer import read_manifest, read_record
from panscope.storage.sealed import write_sealed
from tests.support.store_maker import make_store, manifest_of, tree, write_store

ROWS = 150
ROW = 24  # bytes, of L03.resid_post and of tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_store(tmp_path / "s", ROWS)
    return tmp_path / "s"


def _spoil(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("rows", [1, 64, 65, 150])
def test_an_undamaged_store_has_no_damage_and_all_its_bytes_are_read(tmp_path: Path, rows: int) -> None:
    make_store(tmp_path / "s", rows, dtype="bfloat16")
    before, progress = tree(tmp_path / "s"), list[tuple[int, int]]()
    assert verify(LocalFiles(tmp_path / "s"), lambda done, total: progress.append((done, total))) == []
    total = sum(len(data) - PAGE for name, data in before.items() if name.endswith(".safetensors"))
    assert progress[-1] == (total, total)
    assert progress == sorted(progress)
    assert tree(tmp_path / "s") == before


def test_all_damage_is_named_with_its_rows(folder: Path) -> None:
    shard = folder / "sites/L03.resid_post/00000.safetensors"
    _spoil(shard, PAGE, PAGE + 17 * ROW, PAGE + 63 * ROW)
    _spoil(folder / "tokens/00002.safetensors", PAGE + 20 * ROW)
    _spoil(folder / "tokens/00001.safetensors", 20)
    (folder / "sites/L01.mlp_out/00001.safetensors").unlink()
    _spoil(folder / "sites/L01.mlp_out/00002.json", 30)
    progress: list[tuple[int, int]] = []
    messages = verify(LocalFiles(folder), lambda done, total: progress.append((done, total)))
    wanted = {
        "mlp_out/00001.safetensors' is missing",
        "mlp_out/00002.json'",
        "resid_post/00000.safetensors' is damaged: rows 0 to 31, 48 to 63 do not match",
        "tokens/00001.safetensors' is damaged: its header",
        "tokens/00002.safetensors' is damaged: rows 16 to 21 do not",
    }
    assert len(messages) == len(wanted)
    for part in wanted:
        assert sum(part in message for message in messages) == 1, (part, messages)
    assert progress[-1][0] == progress[-1][1]


def test_a_long_list_of_damage_is_shortened(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    make_store(folder, 1000, shard_rows=1024)
    path = folder / "tokens/00000.safetensors"
    _spoil(path, *range(PAGE, path.stat().st_size, 32 * ROW))
    (message,) = verify(LocalFiles(folder))
    assert "rows 0 to 15, 32 to 47, " in message
    assert "224 to 239 and 24 more ranges do not match" in message


def test_a_shard_without_a_record_is_checked_for_its_shape(folder: Path) -> None:
    (folder / "tokens/00000.json").unlink()
    (folder / "tokens/00000.safetensors").write_bytes(b"short")
    first, second = verify(LocalFiles(folder))
    assert "00000.json' is missing" in first
    assert "00000.safetensors' is damaged: it has 5 bytes" in second


def test_norms_that_do_not_match_the_records_are_found(folder: Path) -> None:
    """As in a manifest taken from a store of other text."""
    manifest = read_manifest(folder / "manifest.json")
    sites = dict(manifest.sites)
    sites["L01.mlp_out"] = sites["L01.mlp_out"].replace(mean_norm=1.0)
    write_sealed(folder / "manifest.json", manifest.replace(sites=sites).model_dump(mode="json"))
    (message,) = verify(LocalFiles(folder))
    assert "manifest.json" in message
    assert "norms of site 'L01.mlp_out'" in message


def test_a_wrong_checksum_of_a_whole_shard_is_found(folder: Path) -> None:
    path = folder / "tokens/00001.json"
    write_sealed(path, read_record(path).replace(xxh3="0" * 16).model_dump(mode="json"))
    (message,) = verify(LocalFiles(folder))
    assert f"{str(path)!r} is damaged: its checksum does not match the shard" in message


def test_an_incomplete_or_missing_store_is_one_message(tmp_path: Path) -> None:
    (message,) = verify(LocalFiles(tmp_path))
    assert "manifest.json' is missing" in message
    write_sealed(tmp_path / "manifest.json", manifest_of(10).model_dump(mode="json"))
    (message,) = verify(LocalFiles(tmp_path))
    assert "is not complete: run the panscope collect command again" in message
    write_store(tmp_path, 10)
    assert verify(LocalFiles(tmp_path)) == []
    assert Store.open(tmp_path).rows == 10
