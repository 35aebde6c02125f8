"""Servers and trainers killed at random moments, dozens of times: every row is given once an epoch to every trainer."""

import json
import random
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import begun, live, nothing
from rich.console import Console

from panscope import records
from panscope.activations.server.client import ServedRows, Servers
from panscope.activations.store.store import Store
from panscope.cli.serve import Serve
from panscope.suite import collecting
from panscope.suite.collecting import StoreOptions, collect
from panscope.suite.plan import SuiteConfig
from panscope.suite.reporter import Silent
from panscope.types import Site

KILLS = 72
ROWS, BATCH, EPOCHS = 30_720, 128, 40
SITE = Site(0, "resid_post")
SUITE: dict[str, Any] = {
    "tokens": ROWS,
    "data": {"context": 96, "sequences": 16},
    "coders": [{"layers": [0], "width": 16, "sparsity": 2}],
}


def store(folder: Path) -> None:
    torch.set_num_threads(1)
    collecting.BLOCK_ROWS = 256
    collect(SuiteConfig.read(SUITE, "the suite"), folder, StoreOptions(shard_gib=5e-4), Silent())


def serve(folder: Path, part: str, port: int) -> None:
    with Path("/dev/null").open("w") as nowhere:
        options: dict[str, Any] = {"window_rows": 512, "windows": 3, "grace": 0.2, "forget": 5.0}
        Serve(store=str(folder), slice=part, port=port, **options).run(Console(file=nowhere))


def learn(notes: Path, addresses: list[str]) -> None:
    """Take all batches of both epochs; write down every few of them which rows came, together with the place."""
    torch.set_num_threads(1)
    rows = ServedRows(Servers(tuple(addresses), trainer=notes.name), [SITE], batch=BATCH, seed=1)
    kept: dict[str, Any] = {"batches": 0, "seen": {}, "state": None}
    if notes.exists():
        kept = json.loads(notes.read_text())
        rows.load_state_dict(kept["state"])
    seen = Counter(kept["seen"])
    for number in range(kept["batches"], EPOCHS * ROWS // BATCH):
        batch = next(rows)
        places = zip(batch.document_ids.tolist(), batch.positions.tolist(), strict=True)
        seen.update(f"{document} {position}" for document, position in places)
        if number % 5 == 4 or number + 1 == EPOCHS * ROWS // BATCH:
            records.write_json(notes, {"batches": number + 1, "seen": seen, "state": rows.state_dict()})
    rows.close()


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


@pytest.mark.soak
def test_servers_and_trainers_may_die(tmp_path: Path):
    """Two servers with a slice each, two trainers; whoever is drawn is killed and begun again."""
    live(nothing)
    folder = tmp_path / "store"
    live(store, folder)
    expected = Store.open(folder).rows
    assert expected == ROWS
    draw, ports = random.Random(0), [free_port(), free_port()]
    addresses = [f"grpc://127.0.0.1:{port}" for port in ports]
    works: dict[str, tuple[Any, ...]] = {
        "server 1": (serve, folder, "1/2", ports[0]),
        "server 2": (serve, folder, "2/2", ports[1]),
        "trainer 1": (learn, tmp_path / "trainer-1", addresses),
        "trainer 2": (learn, tmp_path / "trainer-2", addresses),
    }
    lives = {name: begun(*work) for name, work in works.items()}
    try:
        for _ in range(KILLS):
            victim = draw.choice(sorted(works))
            lives[victim].join(draw.uniform(0, 1))
            lives[victim].kill()
            lives[victim].join()
            assert lives[victim].exitcode == -9, "it ended before all kills were done: give it more to do"
            lives[victim] = begun(*works[victim])
        for name in ("trainer 1", "trainer 2"):
            lives[name].join(300)
            assert lives[name].exitcode == 0, name
    finally:
        for process in lives.values():
            process.kill()
            process.join()
    for name in ("trainer-1", "trainer-2"):
        notes = json.loads((tmp_path / name).read_text())
        assert notes["batches"] == EPOCHS * ROWS // BATCH
        assert len(notes["seen"]) == ROWS
        assert set(notes["seen"].values()) == {EPOCHS}
