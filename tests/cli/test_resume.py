"""Stopped, killed or crashed anywhere, a run that is taken up again ends with the very same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from panscope.storage import atomic
from panscope.storage.json_lines import JsonLines
from tests.support.tiny_lm import CALIBRATION_ROWS, Command, Tiny

TABLES: list[dict[str, Any]] = [
    {"layers": 0, "width": 32, "sparsity": 4, "recipe": "llama_scope"},
    {"layers": 1, "width": 32, "sparsity": 0.05, "recipe": "gemma_scope"},
    {"layers": 1, "width": 24, "sparsity": 0.1, "recipe": "anthropic_relu", "sites": "mlp_out"},
    {"layers": 0, "width": 32, "sparsity": 4, "recipe": "saebench", "wiring": "transcoder"},
    {"width": 32, "sparsity": 4, "recipe": "multilayer_sae", "wiring": "multilayer", "average_decay": 0.9},
]
SHUFFLES: list[dict[str, Any]] = [
    {"activations": {"shuffle": "buckets", "buffer_rows": 900}},
    {"activations": {"shuffle": "pool", "buffer_rows": 1300}, "data": {"packing": "stream"}},
]
every_shuffle = pytest.mark.parametrize("fields", SHUFFLES, ids=["buckets", "pool"])


class Crash(BaseException):
    """The end of a process, as far as one process can show it: nothing of ours catches it."""


def suite(tiny: Tiny, folder: Path, fields: dict[str, Any]) -> Path:
    return tiny.suite(folder / "suite.toml", *TABLES, **fields)


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, configuration, evaluation, the last checkpoint and, but for speed, every logged figure.

    A process that was killed may have left a temporary file, whose name begins with a dot.
    """
    for pattern in ("suite.toml", "coders/*/*", "checkpoint/step_00000040/*.safetensors"):
        files = sorted(path.relative_to(a) for path in a.glob(pattern))
        assert files
        found = sorted(path.relative_to(b) for path in b.glob(pattern) if not path.name.startswith("."))
        assert files == found
        for file in files:
            assert (a / file).read_bytes() == (b / file).read_bytes(), file
    logs = [JsonLines(run / "train.jsonl").read() for run in (a, b)]
    for record in logs[0] + logs[1]:
        del record["rows_per_second"]
    assert logs[0] == logs[1]
    assert [record["step"] for record in logs[0]] == [step for step in range(5, 41, 5) for _ in TABLES]
    assert json.loads((b / "status.json").read_text())["stage"] == "done"


WHOLE: dict[str, Path] = {}


@pytest.fixture
def whole(panscope: Command, tiny: Tiny, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """Writes suite.toml, and gives a run of it that nothing disturbs: made once a shuffle, and only looked at."""

    def train(fields: dict[str, Any]) -> Path:
        path, key = suite(tiny, tmp_path, fields), str(fields)
        if key not in WHOLE:
            WHOLE[key] = tmp_path_factory.mktemp("whole") / "run"
            call = panscope("train", path, "--out", WHOLE[key])
            assert call.status == 0, call.err
        return WHOLE[key]

    return train


@every_shuffle
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop(
    whole: Callable, panscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict, number: int
):
    """A signal at the third logged line, after step 15: saved at once, and told how to go on."""
    expected = whole(fields)
    append, handler = JsonLines.append, signal.getsignal(number)

    def signalled(log: JsonLines, lines: list[dict[str, Any]]) -> None:
        append(log, lines)
        if lines[0]["step"] == 15:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "append", signalled)
        call = panscope("train", "suite.toml", "--out", "cut")
    assert call.status == 130
    assert "Stopped; everything is saved. To continue: panscope train --resume cut" in call.out
    assert "Traceback" not in call.err
    # The loop asks once a step: the signal came in step 15, after the question or before it.
    assert max(int(p.name[5:]) for p in (tmp_path / "cut" / "checkpoint").iterdir()) in (15, 16)
    assert json.loads((tmp_path / "cut" / "status.json").read_text())["stage"] == "stopped"
    assert signal.getsignal(number) is handler

    call = panscope("train", "--resume", "cut")
    assert call.status == 0, call.err
    assert "resuming from the checkpoint of step 1" in call.out
    assert_same_run(expected, tmp_path / "cut")


def crash_at(monkeypatch: pytest.MonkeyPatch, flush: int) -> Callable[[], int]:
    """Crash when the n-th file or folder should reach the disk; returns a counter of those that did."""
    real, calls = atomic.flush_to_disk, 0

    def counted(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > flush:
            raise Crash
        real(path)

    monkeypatch.setattr(atomic, "flush_to_disk", counted)
    return lambda: calls


def crash_and_resume(panscope: Command, monkeypatch: pytest.MonkeyPatch, flushes: list[int]) -> None:
    """Start the run, crash after so many flushes, go on, crash again ..., go on to the end."""
    command: tuple[str, ...] = ("train", "suite.toml", "--out", "cut")
    for flush in flushes:
        with monkeypatch.context() as patch:
            crash_at(patch, flush)
            with pytest.raises(Crash):
                panscope(*command)
        command = ("train", "--resume", "cut")
    call = panscope(*command)
    assert call.status == 0, call.err


@every_shuffle
def test_crashes_in_the_middle_of_writes(
    whole: Callable, panscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict
):
    """Before the first checkpoint, in the middle of a later one, while coders are written, while they are measured."""
    expected = whole(fields)
    with monkeypatch.context() as patch:
        total = crash_at(patch, 10**9)
        assert panscope("train", "suite.toml", "--out", "counted").status == 0
    in_all = total()
    assert in_all > 100
    crash_and_resume(panscope, monkeypatch, [9, 40, 70, in_all // 3])
    assert_same_run(expected, tmp_path / "cut")


@every_shuffle
def test_a_finished_run_may_be_resumed_and_stays_as_it_is(
    whole: Callable, panscope: Command, tmp_path: Path, fields: dict
):
    run = shutil.copytree(whole(fields), tmp_path / "copy")
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "status.json"]
    before = [path.read_bytes() for path in files]
    assert panscope("train", "--resume", run).status == 0
    assert [path.read_bytes() for path in files] == before
    assert files == [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "status.json"]


def test_a_run_of_a_device_that_is_gone_goes_on_with_another(panscope: Command, tiny: Tiny, tmp_path: Path):
    """`--device` beside --resume and eval, where the one in suite.toml does not exist on this machine."""
    path = tiny.suite(tmp_path / "s.toml", tokens=640, model={"path": str(tiny.model), "device": "cpu"})
    assert panscope("train", path, "--out", "run").status == 0
    for file in (tmp_path / "run" / "status.json", *(tmp_path / "run").glob("coders/*/eval.json")):
        file.unlink()
    written = tmp_path / "run" / "suite.toml"
    written.write_text(written.read_text().replace('device = "cpu"', 'device = "cuda:77"'))
    assert "delete that line to keep the change" in panscope("train", "--resume", "run").sentence()
    written.write_text(written.read_text().partition("\n")[2])
    assert "device 'cuda:77' cannot be used" in panscope("train", "--resume", "run").sentence()
    for command in (("train", "--resume", "run"), ("eval", "run")):
        call = panscope(*command, "--device", "cpu")
        assert call.status == 0, call.err
    assert 'device = "cuda:77"' in written.read_text()
    assert len(list((tmp_path / "run").glob("coders/*/eval.json"))) == 2


DRIVER = """
import os, signal, sys
from panscope.storage import atomic
from panscope.cli.main import main
from panscope.runs import training
training.CALIBRATION_ROWS = CALIBRATION
number, flush, calls, real = int(sys.argv[1]), int(sys.argv[2]), 0, atomic.flush_to_disk
def counted(path):
    global calls
    calls += 1
    if calls == flush:
        os.kill(os.getpid(), number)
    real(path)
atomic.flush_to_disk = counted
sys.argv = ["panscope", *sys.argv[3:]]
main()
""".replace("CALIBRATION\n", f"{CALIBRATION_ROWS}\n")


def in_a_process(folder: Path, number: int, flush: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A `panscope` that sends itself a signal at its n-th flush to the disk."""
    command = [sys.executable, "-c", DRIVER, str(int(number)), str(flush), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_killed_process(whole: Callable, panscope: Command, tmp_path: Path):
    """SIGKILL in the middle of the second checkpoint."""
    fields = SHUFFLES[0]
    expected = whole(fields)
    killed = in_a_process(tmp_path, signal.SIGKILL, 45, "train", "suite.toml", "--out", "cut")
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in sorted((tmp_path / "cut" / "checkpoint").iterdir())] == [
        ".step_00000020.tmp",
        "step_00000010",
    ]
    assert panscope("train", "--resume", "cut").status == 0
    assert_same_run(expected, tmp_path / "cut")


@pytest.mark.soak
@every_shuffle
def test_killed_at_many_points(whole: Callable, panscope: Command, tmp_path: Path, fields: dict):
    """Every process gets a little further; whatever it was doing, the next one goes on."""
    expected = whole(fields)
    arguments, kills = ("train", "suite.toml", "--out", "cut"), 0
    for flush in (3, 17, 24, 31, 29, 42, 51, 60, 75):
        if kills and not (tmp_path / "cut" / "suite.toml").is_file():
            break
        killed = in_a_process(tmp_path, signal.SIGKILL, flush, *arguments)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        kills += 1
        arguments = ("train", "--resume", "cut")
    assert kills >= 5
    assert panscope("train", "--resume", "cut").status == 0
    assert_same_run(expected, tmp_path / "cut")


@pytest.mark.soak
@every_shuffle
def test_a_crash_at_every_single_write(
    whole: Callable, panscope: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict
):
    """Each resumed run does one write more than nothing new, so the whole run is crossed in small steps."""
    expected = whole(fields)
    with monkeypatch.context() as patch:
        total = crash_at(patch, 10**9)
        assert panscope("train", "suite.toml", "--out", "counted").status == 0
    for flush in range(5, total(), 6):
        crash_and_resume(panscope, monkeypatch, [flush])
        assert_same_run(expected, tmp_path / "cut")
        (tmp_path / "cut").rename(tmp_path / f"cut-{flush}")


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_installed_command_stops_politely(whole: Callable, panscope: Command, tmp_path: Path, number: int):
    expected = whole(SHUFFLES[0])
    stopped = in_a_process(tmp_path, number, 45, "train", "suite.toml", "--out", "cut")
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr == ""
    assert "panscope train --resume cut" in stopped.stdout
    done = in_a_process(tmp_path, number, 10**9, "train", "--resume", "cut")
    assert done.returncode == 0, done.stderr
    assert_same_run(expected, tmp_path / "cut")
