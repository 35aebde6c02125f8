"""Every file of a run folder, damaged in every way: a sentence that names it, or the very numbers that were written.

The damage is done in place and undone; what is read is all that Panscope ever reads of a run.
"""

import functools
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panscope.events import Reporter
from panscope.runs import stages, training
from panscope.runs.run import Run
from panscope.types import UserError
from tests.support.hearing import At
from tests.support.small_runs import CALIBRATION_ROWS, same, seen, small_suite, timeless, write_text

READ_BY_NOBODY = ("results.parquet", ".lock")
"""Written for other tools, or empty: whatever happens to them is harmless."""


@dataclass(frozen=True)
class Whole:
    """A run that nothing has happened to."""

    path: Path

    @functools.cached_property
    def files(self) -> list[Path]:
        return sorted(path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        return seen(self.path)

    def read_through(self, damaged: Path) -> None:
        """Read all that may touch a file; raises UserError, or AssertionError where a number is another."""
        top = damaged.parts[0]
        found = seen(self.path, coders=top == "coders", checkpoints=top == "checkpoint")
        for name, value in found.items():
            assert same(value, self.values[name]), name

    def check(self, file: Path, changed: "Change") -> str:
        """What comes of a change to one file: "refused" or "harmless"; it is undone afterwards."""
        path = self.path / file
        original = path.read_bytes()
        changed(path, original)
        try:
            self.read_through(file)
            return "harmless"
        except UserError as error:
            assert names(str(error), path, in_a_folder=len(file.parts) > 1), str(error)
            return "refused"
        finally:
            if path.is_dir():
                path.rmdir()
            path.write_bytes(original)


Change = Callable[[Path, bytes], object]


def names(sentence: str, path: Path, *, in_a_folder: bool) -> bool:
    """Whether one line names a file, or the folder of its coder or checkpoint."""
    return "\n" not in sentence and str(path.parent) in sentence and (in_a_folder or path.name in sentence)


@pytest.fixture(scope="session")
def finished(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("finished")
    write_text(folder / "text.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CALIBRATION_ROWS", CALIBRATION_ROWS)
        assert stages.start(small_suite(shared, folder / "text.jsonl"), folder / "run", Reporter())
    yield Whole(folder / "run")


@pytest.fixture(scope="session")
def stopped(shared: Path, finished: Whole, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """The same run, stopped politely after step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    stop = At("training", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    suite = small_suite(shared, finished.path.parent / "text.jsonl")
    assert stages.start(suite, folder / "run", stop) is None
    yield Whole(folder / "run")


def cut(size: int) -> Change:
    return lambda path, original: path.write_bytes(original[:size])


def flipped(bit: int) -> Change:
    def change(path: Path, original: bytes) -> None:
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)

    return change


def overwritten(place: int, by: bytes) -> Change:
    return lambda path, original: path.write_bytes(original[:place] + by + original[place + len(by) :])


def replaced(by: bytes) -> Change:
    return lambda path, original: path.write_bytes(by)


def removed(path: Path, _: bytes) -> None:
    path.unlink()


def made_a_folder(path: Path, _: bytes) -> None:
    path.unlink()
    path.mkdir()


def changes(run: Whole, file: Path, seed: int) -> list[tuple[str, Change]]:
    """Seeded damage to one file, each kind at several places."""
    draw = random.Random(f"{seed}/{file}")
    original = (run.path / file).read_bytes()
    size = len(original)
    others = [other for other in run.files if (run.path / other).read_bytes() != original]
    alike = [other for other in others if other.suffix == file.suffix]
    found: list[tuple[str, Change]] = [("removed", removed), ("a folder", made_a_folder), ("emptied", replaced(b""))]
    found += [("foreign", replaced(draw.randbytes(size))), ("foreign", replaced(b"[" * 200_000))]
    found += [("foreign", replaced(b"9" * 5_000)), ("foreign", replaced(bytes(size)))]
    for other in draw.sample(others, 2) + draw.sample(alike, min(3, len(alike))):
        found.append(("another file", replaced((run.path / other).read_bytes())))
    if size:
        found += [("cut", cut(draw.randrange(size))) for _ in range(4)] + [("cut", cut(size - 1))]
        found += [("flipped", flipped(draw.randrange(8 * size))) for _ in range(8)]
        found += [("overwritten", overwritten(draw.randrange(size), draw.randbytes(8))) for _ in range(3)]
    return found


def damage_every_file(run: Whole, seed: int) -> Counter[tuple[str, str]]:
    """Try everything; how often each kind of damage had which outcome."""
    outcomes: Counter[tuple[str, str]] = Counter()
    for file in run.files:
        for kind, change in changes(run, file, seed):
            try:
                outcome = run.check(file, change)
            except Exception as error:
                raise AssertionError(f"{file} {kind}: {type(error).__name__}: {error}") from error
            outcomes[kind, outcome] += 1
            if file.name in READ_BY_NOBODY and kind != "a folder":
                assert outcome == "harmless"
    return outcomes


def test_every_file_of_a_finished_run(finished: Whole):
    outcomes = damage_every_file(finished, seed=0)
    assert outcomes.total() > 500
    assert outcomes["flipped", "refused"] > 200


def test_every_file_of_a_stopped_run(stopped: Whole):
    outcomes = damage_every_file(stopped, seed=1)
    assert outcomes.total() > 300
    assert outcomes["flipped", "refused"] > 100


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 8))
def test_every_file_at_more_places(finished: Whole, stopped: Whole, seed: int):
    damage_every_file(finished, seed)
    damage_every_file(stopped, seed)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_damage_to_any_file(finished: Whole, data: st.DataObject):
    """What hypothesis can think of: bytes put, cut out and changed anywhere, several times in one file."""
    file = data.draw(st.sampled_from(finished.files))
    size = (finished.path / file).stat().st_size
    places = st.integers(0, size)
    edits = data.draw(st.lists(st.tuples(places, places, st.binary(max_size=12)), min_size=1, max_size=4))

    def edit(path: Path, original: bytes) -> None:
        for begin, end, by in edits:
            original = original[: min(begin, end)] + by + original[max(begin, end) :]
        path.write_bytes(original)

    finished.check(file, edit)


@pytest.fixture
def one_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load it once for many resumes."""
    monkeypatch.setattr(training, "CALIBRATION_ROWS", CALIBRATION_ROWS)
    monkeypatch.setattr(stages, "load", functools.cache(stages.load))


def resume_all(finished: Whole, stopped: Whole, tmp_path: Path, *, seed: int, each: int) -> Counter[str]:
    """Resume the stopped run with one file damaged, so many times a file: refused, or it ends as the finished one."""
    outcomes: Counter[str] = Counter()
    for file in stopped.files:
        every = changes(stopped, file, seed)
        for kind, change in random.Random(seed).sample(every, min(each, len(every))):
            run = shutil.copytree(stopped.path, tmp_path / "run")
            change(run / file, (run / file).read_bytes())
            try:
                stages.resume(Run.open(run), Reporter())
                outcome = "went on"
                now, undisturbed = timeless(seen(run)), timeless(finished.values)
                for name in now.keys() - ({"log"} if file.name == "train.jsonl" else set()):
                    assert same(now[name], undisturbed[name]), (file, kind, name)
            except UserError as error:
                assert names(str(error), run / file, in_a_folder=len(file.parts) > 1), (file, kind, str(error))
                outcome = "refused"
            shutil.rmtree(run)
            outcomes[outcome] += 1
    return outcomes


def test_resuming_a_damaged_run(finished: Whole, stopped: Whole, tmp_path: Path, one_language_model: None):
    outcomes = resume_all(finished, stopped, tmp_path, seed=0, each=1)
    assert outcomes["refused"] >= 8


@pytest.mark.soak
def test_resuming_runs_damaged_in_more_ways(finished: Whole, stopped: Whole, tmp_path: Path, one_language_model: None):
    resume_all(finished, stopped, tmp_path, seed=1, each=6)
