"""Two processes on one run folder: the second is refused with one sentence, and no lock outlives its owner."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from panscope.cli.main import main
from panscope.events import Reporter
from panscope.runs import stages, training
from panscope.runs.run import Run
from panscope.runs.training import TrainingRun
from panscope.storage.locks import LOCK, locked
from panscope.types import UserError
from tests.support.hearing import At
from tests.support.small_runs import CALIBRATION_ROWS, same, seen, small_suite, timeless, write_text

HELD = "is in use by another process of panscope: wait until that has ended, or stop it"


@pytest.fixture(scope="module")
def stopped(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped; only looked at."""
    folder = tmp_path_factory.mktemp("stopped")
    write_text(folder / "text.jsonl")
    stop = At("training", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stages.start(small_suite(shared, folder / "text.jsonl"), folder / "run", stop) is None
    return folder / "run"


@pytest.fixture
def run(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of it."""
    monkeypatch.setattr(training, "CALIBRATION_ROWS", CALIBRATION_ROWS)
    return Run.open(shutil.copytree(stopped, tmp_path / "run"))


def hold(folder: Path, held: Any) -> None:
    """The work of the other process: hold the folder, say so, and never end."""
    with locked(folder):
        held.send(True)
        held.recv()


@contextmanager
def holding(folder: Path) -> Iterator[Any]:
    """Another process that holds the folder until it is killed or this is over."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["panscope.cli.main", "panscope.runs.stages"])
    here, there = context.Pipe()
    process = context.Process(target=hold, args=(folder, there))
    process.start()
    try:
        assert here.poll(100)
        assert here.recv()
        yield process
    finally:
        process.kill()
        process.join(60)


def test_what_another_process_holds_is_refused_and_left_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with holding(run.path):
        with pytest.raises(UserError, match=HELD) as caught:
            stages.resume(run, Reporter())
        assert str(run.path) in str(caught.value)
        for command in (("train", "--resume"), ("eval",)):
            monkeypatch.setattr(sys, "argv", ["panscope", *command, str(run.path)])
            with pytest.raises(SystemExit) as left:
                main()
            assert left.value.code == 2
            assert capsys.readouterr() == ("", f"Error: {str(run.path)!r} {HELD}\n")
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_killed_owner_lets_go_at_once(run: Run):
    with holding(run.path) as owner:
        os.kill(owner.pid, signal.SIGKILL)
        owner.join(60)
        assert owner.exitcode == -signal.SIGKILL
        assert (run.path / LOCK).is_file()
        assert stages.resume(run, Reporter()) is not None


def test_a_run_is_held_from_its_first_file_to_its_last(
    shared: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """While it trains, while coders are saved and while they are measured; then it is free."""
    refused: list[str] = []

    def try_to_resume(folder: Path) -> None:
        with pytest.raises(UserError, match=HELD):
            stages.resume(Run.open(folder), Reporter())

    def watched(stage: str, real: Callable) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            try_to_resume(tmp_path / "run")
            refused.append(stage)
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(training, "CALIBRATION_ROWS", CALIBRATION_ROWS)
    for owner, stage in ((TrainingRun, "train"), (TrainingRun, "save_coders"), (stages, "evaluate_run")):
        monkeypatch.setattr(owner, stage, watched(stage, getattr(owner, stage)))
    suite = small_suite(shared, stopped.parent / "text.jsonl")
    assert stages.start(suite, tmp_path / "run", At("training", 2, lambda: try_to_resume(tmp_path / "run"))) is not None
    assert refused == ["train", "save_coders", "evaluate_run"]
    with locked(tmp_path / "run"):
        pass


def test_a_run_that_ends_in_an_error_lets_go(run: Run, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise UserError("no")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "save_coders", fail)
        with pytest.raises(UserError, match="no"):
            stages.resume(run, Reporter())
    assert stages.resume(run, Reporter()) is not None


def test_the_results_of_a_finished_run_can_be_looked_at_while_it_is_measured_again(run: Run):
    assert stages.resume(run, Reporter()) is not None
    with holding(run.path):
        assert set(stages.resume(run, Reporter()) or {}) == set(run.coder_names())


def test_of_two_that_begin_the_same_folder_one_is_refused(
    shared: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both found it free; the other has it by now."""
    monkeypatch.setattr(Run, "check_free", lambda path: None)
    (tmp_path / "run").mkdir()
    with holding(tmp_path / "run"), pytest.raises(UserError, match=HELD):
        stages.start(small_suite(shared, stopped.parent / "text.jsonl"), tmp_path / "run", Reporter())
    assert not (tmp_path / "run" / "suite.toml").exists()


def test_what_killed_processes_left_is_swept_away(run: Run):
    left = [
        run.path / ".status.json.123.tmp",
        run.checkpoints / ".step_00000006.tmp",
        run.path / "coders" / ".tmpAb3xYz",
    ]
    left[0].write_text("{half")
    left[1].mkdir()
    (left[1] / "0000.json").write_text("{half")
    left[2].write_bytes(b"half")
    assert stages.resume(run, Reporter()) is not None
    assert [path.name for path in run.path.rglob(".*")] == [LOCK]


def test_a_clock_that_goes_backwards_changes_nothing(run: Run, stopped: Path, monkeypatch: pytest.MonkeyPatch):
    """The clock on the wall is set back an hour at every look; how long things take is measured by another one."""
    undisturbed = Run.open(shutil.copytree(stopped, run.path.with_name("undisturbed")))
    assert stages.resume(undisturbed, Reporter()) is not None
    clock = {"now": 2e9}

    def back(*_: object) -> float:
        clock["now"] -= 3600
        return clock["now"]

    written: list[str] = []
    write, strftime, gmtime = Run.write_status, time.strftime, time.gmtime
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", back)
        patch.setattr(time, "time_ns", lambda: int(back() * 1e9))
        patch.setattr(time, "localtime", lambda *_: gmtime(back()))
        patch.setattr(time, "strftime", lambda form, *_: strftime(form, gmtime(back())))
        patch.setattr(Run, "write_status", lambda folder, *a, **b: (write(folder, *a, **b), note(folder)))

        def note(folder: Run) -> None:
            written.append(folder.status()["since"])

        assert stages.resume(run, Reporter()) is not None
    assert len(written) == 4
    assert written == sorted(written, reverse=True)
    assert all(line["rows_per_second"] > 0 for line in run.read_log())
    assert same(timeless(seen(run.path)), timeless(seen(undisturbed.path)))
