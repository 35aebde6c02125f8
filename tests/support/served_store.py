"""A small store with identifiable rows, a server of it in this process, and checks of what trainers received."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from panscope.activations.store.layout import StoredColumn
from panscope.activations.store.manifest import Manifest, Origin
from panscope.activations.store.store import Store
from panscope.activations.store.windows import Slice
from panscope.activations.store.writer import StoreWriter
from panscope.serving.client.connection import Access
from panscope.serving.client.served_rows import ServedRows, Servers
from panscope.serving.server.server import ActivationServer, ListenConfig
from panscope.serving.server.service import Service, ServiceLimits
from panscope.types import ActivationBatch, Site
from tests.support.store_maker import model_identity

RESID, MLP = Site(3, "resid_post"), Site(1, "mlp_out")
WIDTHS = {RESID: 6, MLP: 3}
BLOCK = 16
WEIGHTS = "abc"
TIME_LIMIT = 30.0
"""Seconds after which a test that waits has failed."""


class _Rows:
    """Row i has token i; its other values are random numbers of the seed i."""

    device = torch.device("cpu")

    def __init__(self, rows: int) -> None:
        self._rows, self._next = rows, 0

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> ActivationBatch:
        number = torch.arange(self._next, min(self._rows, self._next + BLOCK))
        if not len(number):
            raise StopIteration
        generator = torch.Generator().manual_seed(self._next)
        self._next += BLOCK
        rows = {site: torch.randn(len(number), width, generator=generator) for site, width in WIDTHS.items()}
        return ActivationBatch(rows, number, number // 10, number % 10)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = state["next"]


def make_store(folder: Path, rows: int, dtype: Any = "bfloat16", weights: str = WEIGHTS) -> Store:
    """A finished store in shards of 64 rows."""
    fields: dict[str, Any] = {"model": "fake", "revision": None, "model_identity": model_identity(weights)}
    fields |= {"model_dtype": "float32", "attention": "eager", "data": {}, "special_tokens": "drop", "seed": 0}
    origin = Origin(**fields, wanted_rows=rows, bucket_rows=64)
    manifest = Manifest(origin=origin, dtype=dtype, shard_rows=4 * BLOCK, block_rows=BLOCK, versions={})
    StoreWriter(folder, manifest, WIDTHS).write(_Rows(rows))
    return Store.open(folder)


@dataclass
class Served:
    """A server in this process, and what it logged."""

    server: ActivationServer
    service: Service
    log: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.server.address


@contextmanager
def serving(
    store: Store,
    *,
    part: str = "1/1",
    sites: tuple[Site, ...] = (RESID, MLP),
    listen: ListenConfig | None = None,
    **limits: Any,
) -> Iterator[Served]:
    """A server of windows of 32 rows, four of them in memory."""
    log: list[str] = []
    defaults = {"window_rows": 2 * BLOCK, "windows": 4, "grace": 0.0, "forget": 60.0}
    service = Service(store, sites, Slice.parse(part), ServiceLimits(**defaults | limits), log=log.append)
    with ActivationServer(service, listen or ListenConfig(port=0), log.append) as server:
        yield Served(server, service, log)


def trainer(addresses: Iterable[str], *, batch: int = 7, seed: int = 0, **options: Any) -> ServedRows:
    """A source of both sites, or of those given."""
    sites, weights = options.pop("sites", (RESID, MLP)), options.pop("weights", WEIGHTS)
    access = Access(options.pop("token", None), options.pop("certificate", None))
    servers = Servers(tuple(addresses), access, **options)
    return ServedRows(servers, sites, batch=batch, seed=seed, weights=weights)


def take(source: ServedRows, batches: int) -> list[ActivationBatch]:
    return [next(source) for _ in range(batches)]


def numbers(batches: Iterable[ActivationBatch]) -> list[int]:
    """Which rows these are."""
    return [number for batch in batches for number in batch.token_ids.tolist()]


def check_once_an_epoch(given: list[int], rows: range) -> None:
    """Each epoch gives every row once: of any two rows, none is a whole epoch ahead, wherever this ends."""
    counts = Counter(given)
    assert set(counts) <= set(rows)
    epochs, rest = divmod(len(given), len(rows))
    for epoch in range(epochs):
        assert sorted(given[epoch * len(rows) : (epoch + 1) * len(rows)]) == list(rows), f"epoch {epoch}"
    assert len(set(given[len(given) - rest :])) == rest


def check_bits(store: Store, batches: Iterable[ActivationBatch]) -> None:
    """Every row is bit for bit the store's."""
    for batch in batches:
        for column in store.columns(tuple(batch.rows)):
            wanted = store.take(column, batch.token_ids)
            if column.folder == StoredColumn.of_tokens().folder:
                found = torch.stack([batch.token_ids, batch.document_ids, batch.positions], dim=1)
            else:
                found = batch.rows[Site.parse(column.folder.removeprefix("sites/"))]
            assert found.dtype == wanted.dtype
            assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))
