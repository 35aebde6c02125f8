"""Coders trained on a store are as good as those trained live on the same tokens of a trained model."""

from pathlib import Path
from typing import Any

import pytest

from panscope.events import Reporter
from panscope.planning.plan import SuiteConfig
from panscope.runs import stages
from panscope.runs.collection import StoreOptions, collect

NEAR = 0.01
"""Relative difference of the mean FVU that is asked for."""


@pytest.mark.soak
def test_a_store_gives_the_same_fvu(shared: Path, tmp_path: Path):
    tables: dict[str, Any] = {
        "tokens": 200_000,
        "model": {"path": str(shared / "models" / "stories260K"), "device": "cpu"},
        "data": {"text": [str(shared / "text" / "tinystories.jsonl")], "context": 256},
        "train": {"batch": 512},
        "eval": {"tokens": 20_000},
        "coders": [
            {"sites": ["resid_post", "mlp_out"], "layers": [1, 3], "width": 512, "sparsity": 16, "architecture": "topk"}
        ],
    }
    suite = SuiteConfig.read(tables, "the suite")
    collect(suite, tmp_path / "store", StoreOptions(shard_gib=0.01), Reporter())
    source = {"source": "store", "store": str(tmp_path / "store")}
    live = stages.start(suite, tmp_path / "live", Reporter())
    stored = stages.start(SuiteConfig.read(tables | {"activations": source}, "it"), tmp_path / "stored", Reporter())
    assert live is not None
    assert stored is not None
    means = [sum(result["fvu"] for result in results.values()) / len(results) for results in (live, stored)]
    assert len(live) == 4
    assert abs(means[1] / means[0] - 1) < NEAR
    for name, result in live.items():
        assert abs(stored[name]["fvu"] / result["fvu"] - 1) < 2 * NEAR, name
