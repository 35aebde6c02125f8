"""The results of a run as pyarrow or pandas tables: training logs and evaluation metrics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow

from panscope import coders
from panscope.coders.inference import KernelsName
from panscope.loading.load import load
from panscope.loading.loaded_coder import LoadedCoder
from panscope.planning.plan import SuiteConfig
from panscope.runs.finished_coder import HELD_OUT, FinishedCoder
from panscope.runs.run import Run
from panscope.types import UserError


class OpenRun:
    """Read-only access to a run folder; created by `open_run`.

    `table` and `training_table` return pyarrow tables (accepted by `polars.from_arrow`), `results` and `training` the
    same as pandas frames. Columns are explained in docs/reference.md.
    """

    def __init__(self, path: Path | str) -> None:
        self._run = Run.open(path)

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._run.path

    @property
    def suite(self) -> SuiteConfig:
        """The configuration of the run, including all defaults; raises UserError if suite.toml is damaged."""
        return self._run.suite

    def coder_names(self) -> list[str]:
        """The names of the finished coders."""
        return self._run.coder_names()

    def coder(self, name: str, *, kernels: KernelsName = "auto", device: str = "cpu") -> LoadedCoder:
        """Load one coder; raises UserError if there is none of that name."""
        return load(self.path, name, kernels=kernels, device=device)

    def coders(
        self,
        *,
        site: str | None = None,
        layer: int | None = None,
        architecture: str | None = None,
        width: int | None = None,
        k: int | None = None,
        kernels: KernelsName = "auto",
        device: str = "cpu",
    ) -> dict[str, LoadedCoder]:
        """Load the coders that match all given criteria, by name; without criteria, all coders.

        `site` is a site such as `L03.resid_post` or a kind such as `resid_post`, `layer` the index of a layer: a coder
        matches if it reads or predicts there. `architecture` is that of training, `width` the number of latents, `k` K
        of TopK, BatchTopK and Matryoshka. Raises UserError, listing the coders of the run, if none matches.
        """
        criteria = {"site": site, "layer": layer, "architecture": architecture, "width": width, "k": k}
        criteria = {name: value for name, value in criteria.items() if value is not None}
        found = [coder.name for coder in self._run.coders() if _matches(coder, criteria)]
        if not found:
            text = ", ".join(f"{name}={value!r}" for name, value in criteria.items())
            raise UserError(
                f"the run {str(self.path)!r} has no coder with {text}: it has {', '.join(self.coder_names())}"
            )
        return {name: self.coder(name, kernels=kernels, device=device) for name in found}

    def labels(self) -> list[str]:
        """The labels of the run's evaluations: `held_out` and any others."""
        return self._run.labels()

    def table(self, label: str = HELD_OUT) -> pyarrow.Table:
        """One row per coder: its wiring, layer, sites, architecture, width, sparsity, and all metrics in its eval.json.

        Losses are in nats, fvu and fractions are shares of 1, l0 is in latents per row. Raises UserError if there is no
        such evaluation.
        """
        return self._run.results(label)

    def results(self, label: str = HELD_OUT) -> Any:
        """`table` as a pandas frame."""
        return self.table(label).to_pandas()

    def evaluation(self, coder: str, label: str = HELD_OUT) -> dict[str, Any]:
        """The whole eval.json of a coder, including intervals and subsets.

        Raises UserError if there is no such coder or evaluation, and for a file that is missing or damaged.
        """
        one = self._run.coder(coder)
        found = one.evaluation(label)
        if found is None:
            labels = ", ".join(one.labels()) or "none yet"
            raise UserError(f"the coder {coder!r} of {str(self.path)!r} has no evaluation {label!r}: it has {labels}")
        return found.content

    def training_table(self) -> pyarrow.Table:
        """One row per logged step and coder: loss, fvu, l0, ...; raises UserError if the log is damaged."""
        return pyarrow.Table.from_pylist(self._run.read_log())

    def training(self) -> Any:
        """`training_table` as a pandas frame."""
        return self.training_table().to_pandas()


def _matches(coder: FinishedCoder, criteria: Mapping[str, Any]) -> bool:
    """Whether a coder matches all criteria."""
    trained, sites = coder.config["training"]["coder"], coder.wiring.sites()
    selects_k = coders.config_type(trained["architecture"]).selects_k
    values: dict[str, set[Any]] = {
        "site": {str(site) for site in sites} | {site.kind for site in sites},
        "layer": {site.layer for site in sites},
        "architecture": {trained["architecture"]},
        "width": {trained["width"]},
        "k": {trained["sparsity"]} if selects_k else set(),
    }
    return all(value in values[name] for name, value in criteria.items())


def open_run(path: Path | str) -> OpenRun:
    """Open a run folder for reading; raises UserError if it is not one."""
    return OpenRun(path)
