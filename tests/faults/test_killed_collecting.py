"""`collect` killed at random moments, dozens of times: the store that comes out has the bytes of an undisturbed one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from kills import assert_same_files, live, live_killed

from panscope.suite import collecting
from panscope.suite.collecting import StoreOptions, collect
from panscope.suite.plan import SuiteConfig
from panscope.suite.reporter import Silent

KILLS = 8
SUITE: dict[str, Any] = {
    "tokens": 30_000,
    "data": {"context": 96, "sequences": 16},
    "activations": {"buffer_rows": 2_000},
    "coders": [{"sites": ["resid_post", "mlp_out"], "layers": [0, 1], "width": 16, "sparsity": 2}],
}


def store(folder: Path, packing: str) -> None:
    """Blocks of 256 rows, five of them a shard."""
    torch.set_num_threads(1)
    collecting.BLOCK_ROWS = 256
    suite = SuiteConfig.read(SUITE | {"data": SUITE["data"] | {"packing": packing}}, "the suite")
    collect(suite, folder, StoreOptions("bfloat16", shard_gib=5 * 256 * 128 * 2 / 2**30), Silent())


@pytest.mark.soak
@pytest.mark.parametrize("packing", ["documents", "stream"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_collect_loses_nothing(packing: str, seed: int, tmp_path: Path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    longest = live(store, undisturbed, packing)
    assert len(list(undisturbed.glob("tokens/*.json"))) > 10
    live_killed(seed, KILLS, longest, killed, store, packing)
    assert_same_files(undisturbed, killed)
    assert not list(killed.rglob("*.tmp"))
