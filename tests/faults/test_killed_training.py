"""`train` killed at random moments, dozens of times: the weights that come out have the bytes of an undisturbed run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from panscope.events import Reporter
from panscope.planning.plan import SuiteConfig
from panscope.runs import collection as collecting
from panscope.runs import stages, training
from panscope.runs.collection import StoreOptions, collect
from panscope.runs.run import Run
from tests.support.kills import assert_same_files, live, live_killed

KILLS = 8
SUITE: dict[str, Any] = {
    "tokens": 12_800,
    "data": {"context": 96, "sequences": 16},
    "activations": {"buffer_rows": 3_000},
    "train": {"batch": 128, "log_every": 10, "checkpoint_every": 10},
    "eval": {"tokens": 500},
    "coders": [
        {"layers": [0], "width": 64, "sparsity": 4, "architecture": "topk"},
        {"layers": [1], "width": 64, "sparsity": 0.01, "architecture": "jumprelu", "sites": "mlp_out"},
    ],
}


def suite(source: dict[str, str]) -> SuiteConfig:
    return SuiteConfig.read(SUITE | {"activations": SUITE["activations"] | source}, "the suite")


def train(folder: Path, source: dict[str, str]) -> None:
    """Begin a run, or go on with it."""
    torch.set_num_threads(1)
    training.CALIBRATION_ROWS = 500
    run = Run(folder)
    if run.suite_file.exists():
        stages.resume(run, Reporter())
    else:
        stages.start(suite(source), folder, Reporter())


def store(folder: Path) -> None:
    """What the suite reads, for the runs that learn from a store."""
    torch.set_num_threads(1)
    collecting.BLOCK_ROWS = 256
    collect(suite({}), folder, StoreOptions(shard_gib=1e-3), Reporter())


def is_by_the_clock(path: Path) -> bool:
    """Status and log say when, and how fast; checkpoints and tables hold the size of the log."""
    return path.name in ("status.json", "train.jsonl") or path.suffix == ".parquet" or path.match("checkpoint/*/*.json")


@pytest.mark.soak
@pytest.mark.parametrize("source", ["live", "store"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_ends_with_the_same_bytes(source: str, seed: int, tmp_path: Path):
    fields = {} if source == "live" else {"source": "store", "store": str(tmp_path / "store")}
    if fields:
        live(store, tmp_path / "store")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    longest = live(train, undisturbed, fields)
    live_killed(seed, KILLS, longest, killed, train, fields)
    assert_same_files(undisturbed, killed, is_by_the_clock)
    assert list(killed.glob("coders/*/weights.safetensors"))
    assert list(killed.glob("checkpoint/step_00000100/*.safetensors"))
