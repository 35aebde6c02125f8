"""Checkpoints: what goes in comes out, damage is always noticed, the one before is never touched."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.storage import atomic
from panscope.training.checkpoint import Checkpoints
from panscope.types import UserError


def parts(number: int = 0) -> dict[str, dict[str, Any]]:
    """Two parts with every kind of value that a state may hold."""
    tensors = {
        "single": torch.arange(6.0).reshape(2, 3) + number,
        "double": torch.tensor([1 / 3, -1e300], dtype=torch.float64),
        "half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        "long": torch.tensor([2**60, -1]),
        "truth": torch.tensor([True, False]),
        "scalar": torch.tensor(7.0),
        "none": torch.empty(0, dtype=torch.int64),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    plain = {"text": "a", "nothing": None, "whole": 2**53 + 1, "third": 1 / 3, "yes": True, "list": [1, [2, None]]}
    return {
        "L00R-8x": {"tensors": tensors, "plain": plain, "empty": {}, "deep": {"er": {"x": torch.ones(1)}}},
        "source": {"list": [{"x": torch.zeros(2)}, "b"], "none": []},
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key, value in a.items():
            assert_same(value, b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert type(a) is type(b)
        assert a == b


def test_every_kind_of_value_comes_back(tmp_path: Path):
    Checkpoints(tmp_path).save(3, parts())
    assert_same(Checkpoints(tmp_path).load(3), parts())


def test_no_pickle_and_nothing_temporary_is_left(tmp_path: Path):
    Checkpoints(tmp_path / "new").save(3, parts())
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["step_00000003"]
    files = sorted(path.suffix for path in (tmp_path / "new" / "step_00000003").iterdir())
    assert files == [".json", ".json", ".json", ".safetensors", ".safetensors"]


def test_only_the_newest_two_are_kept(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == []
    for step in (5, 10, 99_999_999, 100_000_000):
        checkpoints.save(step, parts(step))
    assert checkpoints.steps() == [99_999_999, 100_000_000]
    assert_same(checkpoints.load(99_999_999), parts(99_999_999))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_that_is_saved_is_not_written_again(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, parts(1))
    checkpoints.save(5, parts(2))
    assert_same(checkpoints.load(5), parts(1))


def damaged(folder: Path, expected: str, then: str) -> None:
    with pytest.raises(UserError) as caught:
        Checkpoints(folder).load(Checkpoints(folder).steps()[-1])
    sentence = str(caught.value)
    assert "half-written or damaged" in sentence
    assert expected in sentence
    assert sentence.endswith(f"delete that folder and resume again to continue from {then}")


def test_any_flipped_byte_is_noticed(tmp_path: Path):
    """One byte of every file in turn, first, middle and last; in the manifest, any that changes a checksum."""
    Checkpoints(tmp_path).save(1, parts())
    folder = tmp_path / "step_00000001"
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        places = {0, len(whole) // 2, len(whole) - 2}
        if path.name == "manifest.json":
            places = {0, whole.index(b"checksums") + 20, whole.rindex(b'"') - 1}
        for place in places:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            name = path.name if path.name != "manifest.json" else ""
            damaged(tmp_path, name, "the beginning")
        path.write_bytes(whole)
    assert_same(Checkpoints(tmp_path).load(1), parts())


def test_damage_names_the_one_to_go_on_from(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, parts(1))
    checkpoints.save(2, parts(2))
    newest = tmp_path / "step_00000002"
    (newest / "0001.safetensors").unlink()
    damaged(tmp_path, "0001.safetensors is missing", "the checkpoint of step 1")
    (newest / "manifest.json").unlink()
    damaged(tmp_path, "manifest.json is missing or unreadable", "the checkpoint of step 1")
    shutil.rmtree(newest)
    assert checkpoints.steps() == [1]
    assert_same(checkpoints.load(1), parts(1))


@pytest.mark.parametrize("text", ["", "{", "{}", '{"step": 1}'])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, text: str):
    Checkpoints(tmp_path).save(1, parts())
    (tmp_path / "step_00000001" / "manifest.json").write_text(text)
    damaged(tmp_path, "manifest.json is missing or unreadable", "the beginning")


def test_a_manifest_of_before_it_had_a_checksum_is_named(tmp_path: Path):
    Checkpoints(tmp_path).save(1, parts())
    path = tmp_path / "step_00000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({"step": 1, "checksums": manifest["checksums"]}))
    damaged(tmp_path, "manifest.json is of an older version of panscope", "the beginning")


def test_a_folder_of_another_step_is_noticed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, parts(1))
    (tmp_path / "step_00000001").rename(tmp_path / "step_00000002")
    damaged(tmp_path, "manifest.json is of format 3 and step 1, not 3 and 2", "the beginning")


def test_a_stray_file_is_no_part(tmp_path: Path):
    Checkpoints(tmp_path).save(1, parts())
    (tmp_path / "step_00000001" / "0009.json").write_text("{half")
    assert_same(Checkpoints(tmp_path).load(1), parts())


def test_a_cut_file_is_noticed(tmp_path: Path):
    Checkpoints(tmp_path).save(1, parts())
    path = tmp_path / "step_00000001" / "0000.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    damaged(tmp_path, "0000.safetensors does not match its checksum", "the beginning")


def test_a_leftover_temporary_folder_is_neither_counted_nor_in_the_way(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, parts(1))
    left = tmp_path / ".step_00000002.tmp"
    left.mkdir()
    (left / "0000.json").write_text("{half")
    (left / "9999.json").write_text("{}")
    assert checkpoints.steps() == [1]
    checkpoints.save(2, parts(2))
    assert checkpoints.steps() == [1, 2]
    assert not left.exists()
    assert_same(checkpoints.load(2), parts(2))


@pytest.mark.parametrize("fails_at", range(9))
def test_a_save_that_fails_at_any_write_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
):
    """A full disk at the n-th flush: 5 files, the folders around them; then all is well again."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, parts(1))
    checkpoints.save(2, parts(2))
    flush, calls = atomic.flush_to_disk, 0

    def full(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > fails_at:
            raise OSError("no space left on device")
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush_to_disk", full)
        with pytest.raises(OSError, match="no space left"):
            checkpoints.save(3, parts(3))
    assert checkpoints.steps() == [1, 2]
    assert_same(checkpoints.load(2), parts(2))
    checkpoints.save(3, parts(3))
    assert checkpoints.steps() == [2, 3]
    assert_same(checkpoints.load(3), parts(3))


def test_the_manifest_is_the_last_file_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (written.append(new.name), replace(old, new)))
    Checkpoints(tmp_path).save(1, parts())
    manifest = json.loads((tmp_path / "step_00000001" / "manifest.json").read_text())
    assert written[-1] == "manifest.json"
    assert sorted(written[:-1]) == sorted(manifest["checksums"])
    assert manifest["step"] == 1
