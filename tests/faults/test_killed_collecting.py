"""`collect` killed at random moments, dozens of times: the store that comes out has the bytes of an undisturbed one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from panscope.events import Reporter
from panscope.planning.plan import SuiteConfig
from panscope.runs import collection as collecting
from panscope.runs.collection import StoreOptions, collect
from tests.support.kills import assert_same_files, live, live_killed

KILLS = 8
SUITE: dict[str, Any] = {
    "tokens": 30_000,
    "data": {"context": 96, "sequences": 16},
    "activations": {"buffer_rows": 2_000},
}
SITES = ["resid_post", "mlp_out"]


def store(folder: Path, packing: str, in_turns: bool = False) -> None:
    """Blocks of 256 rows, five of them a shard; `in_turns` stores one kind of site, and then adds the other."""
    torch.set_num_threads(1)
    collecting.BLOCK_ROWS = 256
    options = StoreOptions("bfloat16", shard_gib=5 * 256 * 128 * 2 / 2**30)
    for sites in (["mlp_out"], SITES) if in_turns else (SITES,):
        coders = [{"sites": sites, "layers": [0, 1], "width": 16, "sparsity": 2}]
        fields = {"coders": coders, "data": SUITE["data"] | {"packing": packing}}
        collect(SuiteConfig.read(SUITE | fields, "the suite"), folder, options, Reporter())


@pytest.mark.soak
@pytest.mark.parametrize("packing", ["documents", "stream"])
@pytest.mark.parametrize("in_turns", [False, True])
def test_a_killed_collect_loses_nothing(packing: str, in_turns: bool, tmp_path: Path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    live(store, undisturbed, packing)
    assert len(list(undisturbed.glob("tokens/*.json"))) > 10
    longest = live(store, tmp_path / "timed", packing, in_turns)
    live_killed(int(in_turns), KILLS, longest, killed, store, packing, in_turns)
    assert_same_files(undisturbed, killed)
    assert not list(killed.rglob("*.tmp"))
