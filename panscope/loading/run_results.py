"""A run's results as tables: what training logged, what evaluation measured, as pyarrow or pandas."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from panscope.coders.inference import KernelsName
from panscope.loading.load import load
from panscope.loading.loaded_coder import LoadedCoder
from panscope.runs.run import RunFolder
from panscope.storage.sealed import read_sealed
from panscope.types import UserError


class OpenRun:
    """A run folder that is only read; `open_run` makes one.

    `table` and `training_table` are pyarrow tables (`polars.from_arrow` takes them), `results` and `training` the same
    as pandas frames. Columns are explained in docs/reference.md.
    """

    def __init__(self, path: Path | str) -> None:
        self._run = RunFolder.open(path)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._run.path

    def coder_names(self) -> list[str]:
        """The finished coders."""
        return self._run.coder_names()

    def coder(self, name: str, *, kernels: KernelsName = "auto", device: str = "cpu") -> LoadedCoder:
        """One coder; raises UserError if there is none of that name."""
        return load(self.path, name, kernels=kernels, device=device)

    def labels(self) -> list[str]:
        """The evaluations there are: `held_out`, and the label of any other."""
        names = [path.stem.removeprefix("results").removeprefix("-") for path in self.path.glob("results*.parquet")]
        return sorted(name or "held_out" for name in names)

    def table(self, label: str = "held_out") -> pyarrow.Table:
        """A row a coder: its wiring, layer, sites, architecture, width, sparsity, and every number of its eval.json.

        Losses are in nats, fvu and fractions shares of 1, l0 latents a row. Raises UserError where there is no such
        evaluation.
        """
        self._check_has("evaluation", label, self.labels())
        path = self.path / ("results.parquet" if label == "held_out" else f"results-{label}.parquet")
        try:
            return pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{str(path)!r} cannot be read: measure again by `panscope eval {self.path}`") from error

    def results(self, label: str = "held_out") -> Any:
        """`table` as a pandas frame."""
        return self.table(label).to_pandas()

    def evaluation(self, coder: str, label: str = "held_out") -> dict[str, Any]:
        """All of a coder's eval.json, intervals and subsets too.

        Raises UserError where there is no such coder or evaluation, and for a file that is missing or damaged.
        """
        self._check_has("coder", coder, self.coder_names())
        self._check_has("evaluation", label, self.labels())
        name = "eval.json" if label == "held_out" else f"eval-{label}.json"
        return read_sealed(self._run.coder(coder) / name, then=f"measure again by `panscope eval {self.path}`")

    def _check_has(self, what: str, name: str, names: list[str]) -> None:
        if name not in names:
            have = ", ".join(names) or "none yet"
            raise UserError(f"the run {str(self.path)!r} has no {what} {name!r}: it has {have}")

    def training_table(self) -> pyarrow.Table:
        """A row a logged step and coder: loss, fvu, l0, dead_fraction ...; raises UserError if the log is damaged."""
        return pyarrow.Table.from_pylist(self._run.read_log())

    def training(self) -> Any:
        """`training_table` as a pandas frame."""
        return self.training_table().to_pandas()


def open_run(path: Path | str) -> OpenRun:
    """A run folder of `train`, to look at; raises UserError if it is none."""
    return OpenRun(path)
