"""A disk that is full, read-only or forbidden: one sentence, nothing saved is lost, and afterwards the run goes on.

Where a small file system can be mounted (as root, on Linux) the disk is really full; elsewhere the system's answer is
put in its place.
"""

import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope.cli.main import main
from panscope.config import write_toml
from panscope.events import Reporter
from panscope.planning.plan import SuiteConfig
from panscope.runs import stages, training
from panscope.runs.run import Run
from panscope.storage import atomic
from panscope.storage.atomic import WriteError
from panscope.storage.json_lines import JsonLines
from panscope.storage.locks import locked
from panscope.storage.sealed import read_json, write_json
from panscope.storage.tensors import write_tensors
from panscope.types import UserError
from tests.support.small_runs import CALIBRATION_ROWS, same, seen, small_suite, timeless, write_text

ANSWERS = {
    errno.ENOSPC: ("No space left on device", "free some disk space"),
    errno.EDQUOT: ("Disk quota exceeded", "free some disk space"),
    errno.EROFS: ("Read-only file system", "make it writable"),
    errno.EACCES: ("Permission denied", "make it writable"),
}
NOBODY = 65534


@pytest.fixture(autouse=True)
def quick_to_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """One language model for all runs, and few rows to calibrate on."""
    monkeypatch.setattr(training, "CALIBRATION_ROWS", CALIBRATION_ROWS)
    monkeypatch.setattr(stages, "load", LOADED.setdefault("load", _once(stages.load)))


LOADED: dict[str, Any] = {}


def _once(load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def loaded(model: Any) -> Any:
        if model.path not in LOADED:
            LOADED[model.path] = load(model)
        return LOADED[model.path]

    return loaded


@pytest.fixture(scope="module")
def suite(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    text = tmp_path_factory.mktemp("text") / "text.jsonl"
    write_text(text)
    return small_suite(shared, text)


@pytest.fixture
def undisturbed(suite: SuiteConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run gives that nothing happens to."""
    if "undisturbed" not in LOADED:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        assert stages.start(suite, folder, Reporter()) is not None
        LOADED["undisturbed"] = timeless(seen(folder))
    return LOADED["undisturbed"]


def begin_or_go_on(suite: SuiteConfig, folder: Path) -> None:
    """The same command again where nothing is there yet, else --resume: what the sentences say to do."""
    run = Run(folder)
    found = stages.resume(run, Reporter()) if run.suite_file.exists() else stages.start(suite, folder, Reporter())
    assert found is not None


class Refusing:
    """In place of the flush to disk that ends every write: from one call on the system refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, number: int) -> None:
        self.calls, self.after, self.number = 0, after, number
        self._real = atomic.flush_to_disk
        monkeypatch.setattr(atomic, "flush_to_disk", self)

    def __call__(self, path: Path) -> None:
        self.calls += 1
        if self.calls > self.after:
            raise OSError(self.number, os.strerror(self.number))
        self._real(path)


def refuse_and_go_on(suite: SuiteConfig, folder: Path, undisturbed: dict[str, Any], *, after: int, number: int) -> None:
    """A run whose writes are refused from one on, until the user has done what the sentence asks for."""
    why, then = ANSWERS[number]
    with pytest.MonkeyPatch.context() as patch:
        Refusing(patch, after, number)
        with pytest.raises(UserError) as caught:
            begin_or_go_on(suite, folder)
    sentence = str(caught.value)
    assert str(folder) in sentence
    assert f"cannot be written: {why}; earlier files are unchanged: {then}" in sentence
    assert "\n" not in sentence
    assert not list(folder.rglob(".*.tmp"))
    begin_or_go_on(suite, folder)
    found = timeless(seen(folder))  # one checkpoint more, where the refusal came just before the oldest was dropped
    assert same({name: found[name] for name in undisturbed}, undisturbed)


def writes_of_a_run(suite: SuiteConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    with monkeypatch.context() as patch:
        counting = Refusing(patch, 10**9, errno.ENOSPC)
        begin_or_go_on(suite, folder)
    return counting.calls


def test_a_write_refused_at_any_moment(
    suite: SuiteConfig, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first two are suite.toml and status.json; then a checkpoint, a coder, an evaluation ... by chance."""
    writes = writes_of_a_run(suite, tmp_path / "counted", monkeypatch)
    draw = random.Random(0)
    for after in (0, 2, *draw.sample(range(3, writes), 8)):
        refuse_and_go_on(suite, tmp_path / str(after), undisturbed, after=after, number=draw.choice(list(ANSWERS)))


@pytest.mark.soak
def test_a_write_refused_at_every_moment(
    suite: SuiteConfig, undisturbed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    writes = writes_of_a_run(suite, tmp_path / "counted", monkeypatch)
    for after in range(writes):
        number = list(ANSWERS)[after % len(ANSWERS)]
        refuse_and_go_on(suite, tmp_path / str(after), undisturbed, after=after, number=number)


def test_the_command_says_how_to_go_on(
    suite: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "suite.toml").write_text(write_toml(suite.model_dump(mode="json")))
    run = tmp_path / "run"
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["panscope", "train", str(tmp_path / "suite.toml"), "--out", str(run)])
    with monkeypatch.context() as patch:
        Refusing(patch, 40, errno.ENOSPC)
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert said.endswith(f"free some disk space, then continue by: panscope train --resume {run}\n")
    assert said.count("\n") == 1


def test_what_the_system_refuses_elsewhere_is_a_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where nobody of ours looks: a cache of the hub, a text in a closed folder ..."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/closed/text.jsonl")

    monkeypatch.setattr(stages, "start", refuse)
    monkeypatch.setattr(sys, "argv", ["panscope", "train", "demo"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        said == "Error: the system refused '/closed/text.jsonl': Permission denied; check the path and its permissions"
    )


def test_measuring_again_on_a_full_disk_leaves_the_results_of_before(
    suite: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert stages.start(suite, tmp_path / "run", Reporter()) is not None
    run = Run.open(tmp_path / "run")
    files = [*run.path.glob("coders/*/eval.json"), run.path / "results.parquet"]
    before = [path.read_bytes() for path in files]
    lm = stages.load(suite.model)
    for after in range(6):
        with monkeypatch.context() as patch:
            Refusing(patch, after, errno.ENOSPC)
            with pytest.raises(WriteError, match="cannot be written: No space left on device"):
                stages.evaluate_run(run, run.suite, lm, Reporter())
    for path, content in zip(files, before, strict=True):
        if path.suffix == ".json":
            assert path.read_bytes() == content
    assert stages.resume(run, Reporter()) is not None


def test_a_log_that_is_refused_half_a_line_keeps_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = JsonLines(tmp_path / "train.jsonl")
    log.append([{"step": 1}])
    real = Path.open

    class Full:
        """A file that takes ten characters and no more."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, text: str) -> None:
            self._file.write(text[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda path, *a, **b: Full(real(path, *a, **b)) if "a" in a else real(path, *a, **b)
        )
        with pytest.raises(WriteError, match=r"train\.jsonl' cannot be written: No space left") as caught:
            log.append([{"step": 2}, {"step": 3}])
    assert caught.value.errno == errno.ENOSPC
    assert log.path.read_bytes() == b'{"step": 1}\n'
    log.append([{"step": 2}])
    assert log.read() == [{"step": 1}, {"step": 2}]


def test_weights_that_do_not_fit_are_a_sentence(tmp_path: Path, small_disk: Path):
    """What safetensors tells in words of its own."""
    with pytest.raises(WriteError, match=r"a\.safetensors' cannot be written: No space left on device") as caught:
        write_tensors(small_disk / "a.safetensors", {"a": torch.zeros(1_000_000)})
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    made = subprocess.run(options, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    filler.write_bytes(bytes(status.f_bavail * status.f_bsize - left))
    return filler


def test_a_disk_that_is_really_full(suite: SuiteConfig, undisturbed: dict[str, Any], small_disk: Path):
    """Full at the first file, in the first, second ... checkpoint, in the coders; each time room is made afterwards."""
    whole = small_disk / "whole"
    begin_or_go_on(suite, whole)
    needed = sum(path.stat().st_blocks * 512 for path in whole.rglob("*"))
    shutil.rmtree(whole)
    refused = 0
    for left in (0, 4096, needed // 4, needed // 2, needed * 3 // 4, needed - 4096):
        filler, run = fill(small_disk, left), small_disk / "run"
        try:
            begin_or_go_on(suite, run)
        except UserError as error:
            refused += 1
            assert str(run) in str(error)
            assert "No space left on device" in str(error)
        filler.unlink()
        if Run(run).status().get("stage") != "done":
            begin_or_go_on(suite, run)
        assert same(timeless(seen(run)), undisturbed)
        shutil.rmtree(run)
    assert refused >= 4


def test_a_disk_that_is_really_read_only(suite: SuiteConfig, undisturbed: dict[str, Any], small_disk: Path):
    run = small_disk / "run"
    begin_or_go_on(suite, run)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    folder = Run.open(run)
    assert set(stages.resume(folder, Reporter()) or {}) == set(folder.coder_names())
    assert same(folder.status()["stage"], "done")
    with pytest.raises(UserError, match=r"disk/other' cannot be made .*Read-only file system.*choose another --out"):
        stages.start(suite, small_disk / "other", Reporter())
    with pytest.raises(WriteError, match=r"run/\.lock' cannot be written: Read-only file system"), locked(run):
        pass


def attempts(folder: Path, uid: int, answers: Any) -> None:
    """What somebody without rights is told."""
    os.setuid(uid)
    said = {}
    for name, attempt in {
        "create": lambda: Run.create(folder / "new"),
        "open": lambda: Run.open(folder / "closed"),
        "write": lambda: write_json(folder / "a.json", {}),
        "append": lambda: JsonLines(folder / "train.jsonl").append([{}]),
        "read": lambda: read_json(folder / "secret.json"),
        "lock": lambda: locked(folder).__enter__(),
    }.items():
        try:
            attempt()
            said[name] = "allowed"
        except UserError as error:
            said[name] = str(error)
    answers.send(said)


def test_a_folder_of_somebody_else():
    """Rights bind nobody who is root, so the attempts are made by a process that is not."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    folder = Path(tempfile.mkdtemp())
    try:
        for path in (folder / "secret.json", folder / "train.jsonl"):
            path.write_text("{}\n")
        (folder / "closed").mkdir(mode=0o700)
        (folder / "secret.json").chmod(0o600)
        folder.chmod(0o755)
        context = multiprocessing.get_context("forkserver")
        here, there = context.Pipe()
        process = context.Process(target=attempts, args=(folder, NOBODY, there))
        process.start()
        assert here.poll(100)
        said = here.recv()
        process.join(60)
    finally:
        shutil.rmtree(folder)
    assert "cannot be made" in said["create"]
    assert f"{str(folder / 'secret.json')!r} cannot be read: Permission denied" in said["read"]
    assert "suite.toml' cannot be read: Permission denied; make it readable" in said["open"]
    for name, file in {"write": "a.json", "append": "train.jsonl", "lock": ".lock"}.items():
        assert f"{str(folder / file)!r} cannot be written: Permission denied" in said[name]
