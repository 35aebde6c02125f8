"""Small stores: a source whose rows say which they are, and the writer over it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from panscope.activations.store.manifest import Manifest, Origin
from panscope.activations.store.store import Store
from panscope.activations.store.writer import StoreWriter
from panscope.lms.identity import ModelIdentity
from panscope.types import ActivationBatch, Site

RESID = Site(3, "resid_post")
MLP = Site(1, "mlp_out")
WIDTHS = {RESID: 6, MLP: 3}
BLOCK = 16


class Boom(Exception):
    """What a source that fails raises here."""


class NumberedRows:
    """Rows 0 to `rows` - 1 in blocks; row i of a site follows from i, the site and the seed alone."""

    device = torch.device("cpu")

    def __init__(
        self, rows: int, widths: Mapping[Site, int] | None = None, *, seed: int = 0, fail_after: int | None = None
    ) -> None:
        self._rows, self._widths, self._seed = rows, dict(widths or WIDTHS), seed
        self._fail_after, self._given, self._next = fail_after, 0, 0

    def __iter__(self) -> "NumberedRows":
        return self

    def __next__(self) -> ActivationBatch:
        if self._given == self._fail_after:
            raise Boom
        if self._next >= self._rows:
            raise StopIteration
        number = torch.arange(self._next, min(self._rows, self._next + BLOCK))
        self._next += BLOCK
        self._given += 1
        rows = {site: row_of(site, number, width, self._seed) for site, width in self._widths.items()}
        return ActivationBatch(rows, *tokens_of(number, self._seed).unbind(dim=1))

    def state_dict(self) -> dict[str, Any]:
        """With a tensor and a list, as real sources have."""
        return {"next": self._next, "rest": {"ids": torch.arange(self._next % 5)}, "parts": [{"n": self._next}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert torch.equal(state["rest"]["ids"], torch.arange(state["next"] % 5))
        assert state["parts"] == [{"n": state["next"]}]
        self._next = state["next"]


def row_of(site: Site, number: Tensor, width: int, seed: int = 0) -> Tensor:
    """[B, D] float32: what the rows with these numbers are at a site."""
    angle = number[:, None].double() * (1.3 + torch.arange(width)) + site.layer + 0.1 * seed
    return (angle.sin() * (1 + number[:, None] % 7)).float()


def tokens_of(number: Tensor, seed: int = 0) -> Tensor:
    """[B, 3] int64 token, document and position of the rows with these numbers; the token is the number."""
    return torch.stack([number + 1000 * seed, number // 10, number % 10], dim=1)


def model_identity(weights: str = "abc", **changes: Any) -> ModelIdentity:
    """That of the model which rows are said to be of."""
    fields = {"configuration": {"rope_theta": 10_000}, "tokenizer": "def", "transformers": "5.24.0"}
    return ModelIdentity(weights=weights, **fields | changes)


def manifest_of(rows: int, *, shard_rows: int = 64, dtype: Any = "float32", **origin: Any) -> Manifest:
    """What is asked of a store of at most `rows` rows."""
    fields: dict[str, Any] = {
        "model": "fake",
        "revision": None,
        "model_identity": model_identity(),
        "model_dtype": "float32",
        "attention": "eager",
        "data": {"text": ["a.jsonl"], "context": 32},
        "special_tokens": "drop",
        "seed": 0,
        "wanted_rows": rows,
        "bucket_rows": 64,
    }
    return Manifest(
        origin=Origin(**fields | origin),
        dtype=dtype,
        shard_rows=shard_rows,
        block_rows=BLOCK,
        versions={"panscope": "0"},
    )


def write_store(
    folder: Path,
    rows: int,
    *,
    wanted: int | None = None,
    widths: Mapping[Site, int] | None = None,
    source: NumberedRows | None = None,
    seed: int = 0,
    **manifest: Any,
) -> Manifest:
    """Write, or go on writing, a store of the first `wanted` of `rows` rows."""
    asked = manifest_of(rows if wanted is None else wanted, seed=seed, **manifest)
    writer = StoreWriter(folder, asked, widths or WIDTHS)
    missing = {site: (widths or WIDTHS)[site] for site in writer.missing}
    return writer.write(source or NumberedRows(rows, missing, seed=seed))


def make_store(folder: Path, rows: int, **options: Any) -> Store:
    """A finished store, opened."""
    write_store(folder, rows, **options)
    return Store.open(folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
