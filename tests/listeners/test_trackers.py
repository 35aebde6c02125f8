"""Experiment trackers, the real libraries offline: what they wrote is read back and compared with the run's files."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from panscope import api, events
from panscope.listeners import trackers
from panscope.types import UserError

SUITE: dict[str, Any] = {
    "name": "tracked",
    "tokens": 2560,
    "data": {"context": 32, "sequences": 8, "held_out": 0.1},
    "activations": {"norm_rows": 256, "buffer_rows": 512},
    "train": {"batch": 128, "log_every": 5, "checkpoint_every": 10},
    "eval": {"tokens": 200},
    "coders": [{"layers": [1], "width": 16, "sparsity": [2, 4]}],
}
BLOCK = 32768


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: wandb's protocol buffers in LevelDB's log format, after 7 bytes."""
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    raw, place, pending = path.read_bytes(), 7, b""
    while place + 7 <= len(raw):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
        pending += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = internal.Record()
            record.ParseFromString(pending)
            yield record
            pending = b""


def logged(run: Path) -> dict[tuple[str, int], float]:
    """The loss of every coder and logged step, from train.jsonl."""
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(line["coder"], line["step"]): line["loss"] for line in lines}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that both trackers heard of."""
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    out = tmp_path_factory.mktemp("tracked") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        listeners = [api.tracker("wandb"), api.tracker("tensorboard")]
        assert api.train(SUITE, out, quiet=True, listeners=listeners) is not None
        wandb.teardown()  # waits until its process has written everything
    return out


def test_wandb_has_what_the_log_has(run: Path):
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    records = list(wandb_records(path))
    found: dict[tuple[str, int], float] = {}
    summary: dict[str, float] = {}
    config: dict[str, Any] = {}
    for record in records:
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("summary"):
            summary |= {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.summary.update
            }
        if record.HasField("history"):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in items.items():
                if name.endswith("/loss"):
                    found[name.removesuffix("/loss"), items["_step"]] = value
    assert found == pytest.approx(logged(run), rel=1e-6)
    assert config["name"] == "tracked" and config["tokens"] == 2560
    results = {name: api.open_run(run).evaluation(name) for name in api.open_run(run).coder_names()}
    for name, fields in results.items():
        assert summary[f"held_out/{name}/fvu"] == pytest.approx(fields["fvu"])


def test_tensorboard_has_what_the_log_has(run: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events_of = accumulator.EventAccumulator(str(run / "tensorboard"))
    events_of.Reload()
    tags = events_of.Tags()["scalars"]
    found = {
        (tag.removesuffix("/loss"), scalar.step): scalar.value
        for tag in tags
        if tag.endswith("/loss") and not tag.startswith("held_out")
        for scalar in events_of.Scalars(tag)
    }
    assert found == pytest.approx(logged(run), rel=1e-6)
    for name in api.open_run(run).coder_names():
        (scalar,) = events_of.Scalars(f"held_out/{name}/fvu")
        assert scalar.value == pytest.approx(api.open_run(run).evaluation(name)["fvu"], rel=1e-6)


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path: Path):
    """TensorBoard drops the steps that are learned again, so no step is there twice."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "suite.toml").write_text("")
    record = {"coder": "a", "loss": 1.0}
    for first, steps in ((0, (5, 10, 15)), (10, (15, 20))):
        listener = trackers.TensorBoardListener()
        listener(events.RunOpened(tmp_path, {}, first))
        for step in steps:
            listener(events.StepLogged([record | {"step": step}]))
        listener(events.RunClosed())
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [scalar.step for scalar in found.Scalars("a/loss")] == [5, 10, 15, 20]


def test_unknown_and_missing_trackers_are_a_sentence(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="track is 'mlflow': give one or several of wandb, tensorboard"):
        api.tracker("mlflow")
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs wandb, which is not installed: pip install 'panscope\[track\]'"):
        api.tracker("wandb")
