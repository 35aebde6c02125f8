"""Servers and trainers killed at random moments, dozens of times: every row is given once an epoch to every trainer."""

import itertools
import json
import random
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope.activations.store.layout import StoredColumn
from panscope.activations.store.store import Store
from panscope.activations.store.windows import Slice, Windows
from panscope.events import Reporter
from panscope.planning.plan import SuiteConfig
from panscope.runs import collection as collecting
from panscope.runs.collection import StoreOptions, collect
from panscope.runs.serving import ServeOptions, serve_until_stopped
from panscope.serving.client.progress import TrainerProgress
from panscope.serving.client.served_rows import ServedRows, Servers
from panscope.storage.sealed import write_json
from panscope.types import Site
from tests.support.kills import begun, live, nothing

KILLS = 72
ROWS, BATCH, WINDOW_ROWS, SEED, EPOCHS = 30_720, 128, 512, 1, 2
SITE = Site(0, "resid_post")
SUITE: dict[str, Any] = {
    "tokens": ROWS,
    "data": {"context": 96, "sequences": 16},
    "coders": [{"layers": [0], "width": 16, "sparsity": 2}],
}


def store(folder: Path) -> None:
    torch.set_num_threads(1)
    collecting.BLOCK_ROWS = 256
    collect(SuiteConfig.read(SUITE, "the suite"), folder, StoreOptions(shard_gib=5e-4), Reporter())


def serve(folder: Path, part: str, port: int) -> None:
    options = ServeOptions(slice=part, port=port, window_rows=WINDOW_ROWS, windows=3, grace=0.2, forget=5.0)
    serve_until_stopped(str(folder), options, lambda line: None, log_every=60.0)


def learn(notes: Path, enough: Path, addresses: list[str]) -> None:
    """Take batches until `enough` exists and every row was given twice; save the counts of rows with the position.

    Two epochs are asked for because a slow machine may kill every life of a trainer before its first batch.
    """
    torch.set_num_threads(1)
    rows = ServedRows(Servers(tuple(addresses), trainer=notes.name), [SITE], batch=BATCH, seed=SEED)
    kept: dict[str, Any] = {"seen": {}, "state": None}
    if notes.exists():
        kept = json.loads(notes.read_text())
        rows.load_state_dict(kept["state"])
    seen = Counter(kept["seen"])
    while not (enough.exists() and len(seen) == ROWS and min(seen.values()) >= EPOCHS):
        for batch in itertools.islice(rows, 5):
            places = zip(batch.document_ids.tolist(), batch.positions.tolist(), strict=True)
            seen.update(f"{document} {position}" for document, position in places)
        write_json(notes, {"seen": seen, "state": rows.state_dict()})
    rows.close()


def expected(store: Store, state: dict[str, Any]) -> dict[str, int]:
    """How often each row was given to a trainer that stands there, if each came once an epoch."""
    _, document_ids, positions = store.read(StoredColumn.of_tokens(), 0, store.rows).unbind(dim=1)
    counts = torch.zeros(store.rows, dtype=torch.int64)
    for part in (Slice(1, 2), Slice(2, 2)):
        windows = Windows(store.rows, WINDOW_ROWS, store.manifest.cut, part)
        progress = TrainerProgress.from_state(state["slices"][f"{windows.first}-{windows.end}"])
        counts[windows.first : windows.end] = progress.epoch
        for window in range(len(windows)):
            first, count = windows.bounds(window)
            given = count if progress.used[window] else progress.partial.get(window, 0)
            counts[first + windows.permutation(SEED, progress.epoch, window)[:given]] += 1
    names = [f"{d} {p}" for d, p in zip(document_ids.tolist(), positions.tolist(), strict=True)]
    return {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


@pytest.mark.soak
def test_servers_and_trainers_may_die(tmp_path: Path):
    """Two servers with a slice each, two trainers; whoever is drawn is killed and begun again.

    In the end each row was given as often as the trainer's own place says, no more and no less.
    """
    live(nothing)
    folder = tmp_path / "store"
    live(store, folder)
    enough = tmp_path / "enough"
    draw, ports = random.Random(0), [free_port(), free_port()]
    addresses = [f"grpc://127.0.0.1:{port}" for port in ports]
    works: dict[str, tuple[Any, ...]] = {
        "server 1": (serve, folder, "1/2", ports[0]),
        "server 2": (serve, folder, "2/2", ports[1]),
        "trainer 1": (learn, tmp_path / "trainer-1", enough, addresses),
        "trainer 2": (learn, tmp_path / "trainer-2", enough, addresses),
    }
    lives = {name: begun(*work) for name, work in works.items()}
    try:
        for _ in range(KILLS):
            victim = draw.choice(sorted(works))
            lives[victim].join(draw.uniform(0, 1))
            lives[victim].kill()
            lives[victim].join()
            assert lives[victim].exitcode == -9, f"{victim} ended before it was killed"
            lives[victim] = begun(*works[victim])
        enough.touch()
        for name in ("trainer 1", "trainer 2"):
            lives[name].join(300)
            assert lives[name].exitcode == 0, name
    finally:
        for process in lives.values():
            process.kill()
            process.join()
    stored = Store.open(folder)
    assert stored.rows == ROWS
    for name in ("trainer-1", "trainer-2"):
        notes = json.loads((tmp_path / name).read_text())
        assert notes["seen"] == expected(stored, notes["state"])
        assert min(notes["seen"].values()) >= EPOCHS, "no whole epochs were given"
