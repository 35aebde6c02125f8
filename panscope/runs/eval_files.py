"""What an evaluation writes: `eval.json` and tables beside each coder, `results.parquet` for all.

Tables are Parquet: `latents` a row a latent, `positions` a row a site and position, `layers` a row a latent and layer.
`eval.json` has the checksums of the tables that belong to it under `files`, and under `weights` those of the coder's
weights that were measured, so that numbers of weights that are there no more are noticed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow
import pyarrow.parquet
from torch import Tensor

from panscope.coders.files import knows_sparsity
from panscope.coders.wiring import WiredCoder
from panscope.evals.accumulator import Columns, Result
from panscope.evals.table import write_results
from panscope.evals.weights import weight_columns, weight_numbers
from panscope.runs.finished_coder import FinishedCoder
from panscope.runs.run import Run
from panscope.storage.atomic import checksum, replacing
from panscope.storage.sealed import write_sealed

Results = dict[str, dict[str, Any]]
"""The fields of eval.json of every coder."""


def write_all(
    run: Run,
    coders: Mapping[str, WiredCoder],
    results: Mapping[str, Result],
    *,
    about: dict[str, Any],
    suffix: str,
) -> Results:
    """Write every coder's results and the table of all, whose names end with `suffix`; the fields of each eval.json."""
    fields = {}
    _sweep(run, coders, suffix)
    for name, wired in coders.items():
        fields[name] = _write_one(run.coder(name), wired, results[name], about=about, suffix=suffix)
    write_table(run, fields, suffix)
    return fields


def write_table(run: Run, fields: Results, suffix: str) -> None:
    """Write the table of all coders, from the fields of each eval.json."""
    path = run.path / f"results{suffix}.parquet"
    flat = {name: _flat(own) for name, own in fields.items()}
    write_results(path, flat, {name: _facts(run.coder(name), own["evaluated_on"]) for name, own in fields.items()})


def _sweep(run: Run, names: Iterable[str], suffix: str) -> None:
    """Remove what a process that was killed here had begun to write; the caller holds the run's lock."""
    begun = [path for name in names for path in run.coder_folder(name).glob(f".*{suffix}.*.tmp")]
    for left in [*begun, *run.path.glob(f".results{suffix}.*.tmp")]:
        left.unlink(missing_ok=True)


def _write_one(
    coder: FinishedCoder, wired: WiredCoder, result: Result, *, about: dict[str, Any], suffix: str
) -> dict[str, Any]:
    weights = weight_columns(wired.coder)
    tables = dict(result.tables)
    tables["latents"] = _numbered(result.tables["latents"], weights)
    files = {}
    for kind, columns in tables.items():
        path = coder.folder / f"{kind}{suffix}.parquet"
        with replacing(path) as temporary:
            arrays = {column: pyarrow.array(values, from_pandas=True) for column, values in columns.items()}
            pyarrow.parquet.write_table(pyarrow.table(arrays), temporary)  # NaN as null, which is what undefined is
        files[path.name] = checksum(path)
    own = {"coder": coder.name, "weights": coder.weights, "evaluated_on": about, "files": files}
    fields = result.fields | weight_numbers(weights) | own
    write_sealed(coder.folder / f"eval{suffix}.json", fields)
    return fields


def _numbered(latents: Columns, weights: Mapping[str, Tensor]) -> Columns:
    """A row a latent: its number, how it fires, what its weights say."""
    numbers = list(range(len(latents["firings"])))
    return {"latent": numbers, **latents, **{name: column.tolist() for name, column in weights.items()}}


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers."""
    return {name: value for name, value in fields.items() if isinstance(value, int | float)}


def _facts(coder: FinishedCoder, about: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of results.parquet that say which coder a row is about: as trained if it was evaluated so."""
    wiring, config = coder.wiring, coder.config["training"]["coder"] if about["as_trained"] else coder.config["coder"]
    return {
        "wiring": wiring.wiring,
        "layer": wiring.predicts[0].layer if len(wiring.predicts) == 1 else None,
        "reads": " ".join(map(str, wiring.reads)),
        "predicts": " ".join(map(str, wiring.predicts)),
        "architecture": config["architecture"],
        "width": config["width"],
        "sparsity": config["sparsity"] if knows_sparsity(coder.config) else None,
    }
