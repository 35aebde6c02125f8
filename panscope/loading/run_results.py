"""A run's results as tables: what training logged, what evaluation measured, as pyarrow or pandas."""

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
    """A run folder that is only read; `open_run` makes one.

    `table` and `training_table` are pyarrow tables (`polars.from_arrow` takes them), `results` and `training` the same
    as pandas frames. Columns are explained in docs/reference.md.
    """

    def __init__(self, path: Path | str) -> None:
        self._run = Run.open(path)

    @property
    def path(self) -> Path:
        """The folder."""
        return self._run.path

    @property
    def suite(self) -> SuiteConfig:
        """What the run is of, every default written out; raises UserError if suite.toml was damaged."""
        return self._run.suite

    def coder_names(self) -> list[str]:
        """The finished coders."""
        return self._run.coder_names()

    def coder(self, name: str, *, kernels: KernelsName = "auto", device: str = "cpu") -> LoadedCoder:
        """One coder; raises UserError if there is none of that name."""
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
        """The coders that agree with all that is given, by name; all of them without.

        `site` is a site such as `L03.resid_post` or a kind such as `resid_post`, `layer` a layer's number: a coder
        agrees if it reads or predicts there. `architecture` is that of training, `width` the number of latents, `k` K
        of TopK, BatchTopK and Matryoshka. Raises UserError, with the coders there are, where none agrees.
        """
        asked = {"site": site, "layer": layer, "architecture": architecture, "width": width, "k": k}
        asked = {name: value for name, value in asked.items() if value is not None}
        found = [coder.name for coder in self._run.coders() if _agrees(coder, asked)]
        if not found:
            said = ", ".join(f"{name}={value!r}" for name, value in asked.items())
            raise UserError(
                f"the run {str(self.path)!r} has no coder with {said}: it has {', '.join(self.coder_names())}"
            )
        return {name: self.coder(name, kernels=kernels, device=device) for name in found}

    def labels(self) -> list[str]:
        """The evaluations there are: `held_out`, and the label of any other."""
        return self._run.labels()

    def table(self, label: str = HELD_OUT) -> pyarrow.Table:
        """A row a coder: its wiring, layer, sites, architecture, width, sparsity, and every number of its eval.json.

        Losses are in nats, fvu and fractions shares of 1, l0 latents a row. Raises UserError where there is no such
        evaluation.
        """
        return self._run.results(label)

    def results(self, label: str = HELD_OUT) -> Any:
        """`table` as a pandas frame."""
        return self.table(label).to_pandas()

    def evaluation(self, coder: str, label: str = HELD_OUT) -> dict[str, Any]:
        """All of a coder's eval.json, intervals and subsets too.

        Raises UserError where there is no such coder or evaluation, and for a file that is missing or damaged.
        """
        one = self._run.coder(coder)
        found = one.evaluation(label)
        if found is None:
            have = ", ".join(one.labels()) or "none yet"
            raise UserError(f"the coder {coder!r} of {str(self.path)!r} has no evaluation {label!r}: it has {have}")
        return found.content

    def training_table(self) -> pyarrow.Table:
        """A row a logged step and coder: loss, fvu, l0, dead_fraction ...; raises UserError if the log is damaged."""
        return pyarrow.Table.from_pylist(self._run.read_log())

    def training(self) -> Any:
        """`training_table` as a pandas frame."""
        return self.training_table().to_pandas()


def _agrees(coder: FinishedCoder, asked: Mapping[str, Any]) -> bool:
    """Whether a coder is at the place and of the kind that is asked for."""
    trained, sites = coder.config["training"]["coder"], coder.wiring.sites()
    selects_k = coders.config_type(trained["architecture"]).selects_k
    own: dict[str, set[Any]] = {
        "site": {str(site) for site in sites} | {site.kind for site in sites},
        "layer": {site.layer for site in sites},
        "architecture": {trained["architecture"]},
        "width": {trained["width"]},
        "k": {trained["sparsity"]} if selects_k else set(),
    }
    return all(value in own[name] for name, value in asked.items())


def open_run(path: Path | str) -> OpenRun:
    """A run folder of `train`, to look at; raises UserError if it is none."""
    return OpenRun(path)
