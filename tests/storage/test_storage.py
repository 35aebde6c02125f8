"""Run folders: partial writes are never visible, damage is detected, logs survive truncation."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from panscope.runs.run import Run
from panscope.storage.atomic import checksum, replacing, replacing_folder, write_text
from panscope.storage.json_lines import JsonLines
from panscope.storage.locks import LOCK
from panscope.storage.sealed import (
    read_json,
    read_sealed,
    read_sealed_toml,
    write_json,
    write_sealed,
    write_sealed_toml,
)
from panscope.storage.tensors import read_tensors, write_tensors
from panscope.types import UserError


class Boom(Exception):
    """The error of a failing writer."""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(Boom), replacing(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise Boom
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_rename_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="disk full"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_write_replaces_makes_folders_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_text(path, "one")
    write_text(path, "two é")
    assert path.read_text(encoding="utf-8") == "two é"
    assert names(path.parent) == ["a.txt"]


def test_the_data_is_on_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is: flush the temporary, rename, flush the folder."""
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        events.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        events.append("replace")
        replace(source, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc to read a descriptor's path from")
    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_text(tmp_path / "a.txt", "new")
    assert len(events) == 3
    assert events[0].startswith("fsync .a.txt")
    assert events[1:] == ["replace", f"fsync {tmp_path.name}"]


def test_a_failed_folder_never_has_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "step_10"
    with pytest.raises(Boom), replacing_folder(path) as temporary:
        (temporary / "a").write_text("half")
        assert not path.exists()
        raise Boom
    assert not path.exists()
    with replacing_folder(path) as temporary:
        assert names(temporary) == []
        (temporary / "b").write_text("whole")
    assert names(path) == ["b"]
    assert names(tmp_path) == ["step_10"]


def test_a_full_folder_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "step_10"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(OSError), replacing_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert names(path) == ["old"]


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": math.nan, "b": [math.inf, -math.inf, 1.5], "c": ({"d": math.nan},), "e": "NaN", "f": True, "g": None}
    write_json(path, value)

    def never(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(path.read_text(), parse_constant=never)
    assert found == {"a": None, "b": [None, None, 1.5], "c": [{"d": None}], "e": "NaN", "f": True, "g": None}
    assert read_json(path) == found


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe"])
def test_json_that_is_damaged_or_missing_is_explained(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"a\.json.*missing"):
        read_json(path)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json.*damaged"):
        read_json(path)


def test_tensors_go_round_whatever_their_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    base = torch.randn(3, 4)
    tensors = {
        "transposed": base.T,
        "view": base[1:],
        "bf16": base.bfloat16(),
        "int": torch.arange(3),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(1.5),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    write_tensors(path, tensors, {"who": "me"})
    found = read_tensors(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].equal(tensor)


def test_tensors_that_are_cut_or_missing_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match=r"a\.safetensors.*missing"):
        read_tensors(path)
    write_tensors(path, {"a": torch.randn(8)})
    whole = path.read_bytes()
    for size in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.safetensors.*damaged"):
            read_tensors(path)


def test_the_checksum_sees_a_single_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    data = bytearray(range(256)) * 20_000  # above one block of the reader
    path.write_bytes(data)
    before = checksum(path)
    assert len(before) == 16
    assert before == checksum(path)
    for place in (0, 4_194_303, 4_194_304, len(data) - 1):
        data[place] ^= 1
        path.write_bytes(data)
        assert checksum(path) != before
        data[place] ^= 1
    path.write_bytes(data)
    assert checksum(path) == before


def test_json_lines_append_and_read(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "train.jsonl")
    assert log.read() == []
    assert log.size() == 0
    log.append([{"step": 1, "loss": math.nan}, {"step": 2, "text": "a\nb\u2028c é"}])
    log.append([])
    log.append([{"step": 3}])
    assert log.read() == [{"step": 1, "loss": None}, {"step": 2, "text": "a\nb\u2028c é"}, {"step": 3}]
    assert log.size() == log.path.stat().st_size


def test_truncate_takes_a_log_back_to_an_earlier_size(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "train.jsonl")
    log.truncate(0)
    log.append([{"step": 1}])
    size = log.size()
    log.append([{"step": 2}])
    log.truncate(size)
    assert log.read() == [{"step": 1}]
    log.truncate(size)
    log.append([{"step": 20}])
    assert log.read() == [{"step": 1}, {"step": 20}]


def test_a_log_cut_anywhere_in_its_last_line_keeps_the_lines_before(tmp_path: Path) -> None:
    """The last line holds closing braces in its middle, in a string and in a table inside it."""
    log = JsonLines(tmp_path / "train.jsonl")
    log.append([{"step": 1}])
    first = log.size()
    log.append([{"text": "x}", "sites": {"L00.mlp_out": {"loss": 1.0}, "L01.mlp_out": {"loss": 2.0}}, "step": 2}])
    whole = log.path.read_bytes()
    wrong = []
    for size in range(first, len(whole) - 1):
        log.path.write_bytes(whole[:size])
        try:
            found = log.read()
        except ValueError as error:
            found = error
        if found != [{"step": 1}]:
            wrong.append((size, found))
    assert wrong == []


def test_a_record_added_after_a_cut_is_not_lost(tmp_path: Path) -> None:
    """After a crash truncates the last line, the next record is appended on a new line."""
    log = JsonLines(tmp_path / "train.jsonl")
    log.append([{"step": 1}, {"step": 2}])
    log.path.write_bytes(log.path.read_bytes()[:-5])
    log.append([{"step": 3}])
    assert log.read() == [{"step": 1}, {"step": 3}]


def test_create_refuses_what_is_there(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert run.coders_folder.is_dir()
    write_text(run.coders_folder / "something", "")
    with pytest.raises(UserError, match=r"run.*already exists: choose another --out$"):
        Run.create(run.path)
    write_text(run.suite_file, "")
    with pytest.raises(UserError, match=r"run.*already exists.*--resume"):
        Run.create(run.path)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="already exists"):
        Run.create(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert Run.create(empty).coders_folder.is_dir()


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="is not a run folder"):
            Run.open(path)
    run = Run.create(tmp_path / "run")
    write_text(run.suite_file, "")
    assert Run.open(run.path).path == run.path


def test_a_run_that_ended_before_its_first_file_is_in_nobodys_way(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    (run.path / LOCK).touch()
    (run.path / ".suite.toml.12.tmp").write_text("half")
    assert Run.create(run.path).path == run.path
    (run.path / "mine").touch()
    with pytest.raises(UserError, match="already exists"):
        Run.create(run.path)


def test_a_coder_without_its_configuration_is_named(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    write_text(run.coder_folder("a") / "weights.safetensors", "")
    with pytest.raises(UserError, match=r"coders/a' has no config\.json: take an undamaged copy, or delete status"):
        run.coder_names()


def test_a_suite_that_was_changed_is_refused_until_its_first_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    write_sealed_toml(path, {"tokens": 5, "model": {"path": "m"}})
    assert read_sealed_toml(path) == {"tokens": 5, "model": {"path": "m"}}
    path.write_text(path.read_text().replace("tokens = 5", "tokens = 6"))
    with pytest.raises(UserError, match=r"suite\.toml' was changed since the run began.*delete that line to keep"):
        read_sealed_toml(path)
    path.write_text(path.read_text().partition("\n")[2])
    assert read_sealed_toml(path) == {"tokens": 6, "model": {"path": "m"}}


def test_json_without_a_seal_may_be_of_an_older_version(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"stage": "done"})
    with pytest.raises(
        UserError, match=r"a\.json' has no checksum of its content.*or from an older version; delete it$"
    ):
        read_sealed(tmp_path / "a.json", advice="delete it")
    write_sealed(tmp_path / "a.json", {"stage": "done", "x": (1, math.nan)})
    assert read_sealed(tmp_path / "a.json") == {"stage": "done", "x": [1, None]}


def test_a_log_goes_back_only_to_what_it_was(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "train.jsonl")
    nothing = log.mark()
    log.append([{"step": 1}])
    mark = log.mark()
    log.append([{"step": 2}])
    log.roll_back(mark)
    assert log.read() == [{"step": 1}]
    log.path.write_text('{"step": 7}\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"train\.jsonl' is damaged or lacks lines"):
        log.roll_back(mark)
    log.path.write_text("")
    with pytest.raises(UserError, match="lacks lines"):
        log.roll_back(mark)
    log.roll_back(nothing)
    log.path.unlink()
    log.roll_back(mark)
    assert log.read() == []


def test_the_log_of_a_run_is_compared_with_its_status(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    JsonLines(run.train_log).append([{"step": 1, "loss": 0.25}])
    run.write_status("done")
    JsonLines(run.train_log).append([{"step": 2, "loss": 0.5}])
    assert run.read_log() == [{"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.5}]
    run.train_log.write_text('{"step": 1, "loss": 0.35}\n')
    with pytest.raises(UserError, match=r"train\.jsonl' is damaged"):
        run.read_log()


def test_only_finished_coders_are_listed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    assert run.coder_names() == []
    for name in ("b", "a"):
        with replacing_folder(run.coder_folder(name)) as folder:
            write_json(folder / "config.json", {})
    run.coder_folder("no_config").mkdir()
    (run.coders_folder / "stray").write_text("")
    assert run.coder_names() == ["a", "b"]


def test_a_coder_whose_writing_crashed_is_not_listed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    with pytest.raises(Boom), replacing_folder(run.coder_folder("a")) as folder:
        write_json(folder / "config.json", {})
        raise Boom
    assert run.coder_names() == []


def test_status_says_stage_process_and_facts(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    run.write_status("train", step=3, loss=math.nan)
    status = read_json(run.status_file)
    assert status["stage"] == "train"
    assert status["process"] == os.getpid()
    assert (status["step"], status["loss"]) == (3, None)
