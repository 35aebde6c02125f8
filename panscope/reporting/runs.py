"""What is in run folders, read for the report: coders, evaluations by label, training logs; damage is a sentence.

Every JSON file must match its own seal and every table the checksum that its eval.json names, so no figure is drawn of
a damaged number. Tables (positions, latents, layers) are read only when a figure asks for them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from panscope import coders
from panscope.coders import files as store
from panscope.coders.wiring import WIRINGS
from panscope.config import Config
from panscope.runs.finished_coder import HELD_OUT, FinishedCoder, StoredEvaluation, in_order
from panscope.runs.run import Run
from panscope.types import Site, UserError


class RunFacts(Config):
    """Which coder this is."""

    run: str
    name: str
    wiring: str
    reads: tuple[str, ...]
    predicts: tuple[str, ...]
    architecture: str
    """As it was trained."""
    published: str
    """The architecture of the finished weights: JumpReLU where TopK was turned into it."""
    width: int
    expansion: float
    sparsity: float | None
    """None where other tools' files do not say it."""
    sparsity_means: str
    """What `sparsity` is: K, lambda, or the L0 that was asked for."""
    sparsity_from: float | None
    """Where a schedule of `sparsity` begins; None where it is constant."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The predicted sites."""
        return tuple(Site.parse(text) for text in self.predicts)


@dataclass(frozen=True)
class CoderResults:
    """A finished coder with all that was measured of it."""

    facts: RunFacts
    evaluations: dict[str, StoredEvaluation]


@dataclass(frozen=True)
class ReportedRun:
    """One run of a report."""

    name: str
    run: Run
    coders: tuple[CoderResults, ...]

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.run.path

    @property
    def suite(self) -> dict[str, Any]:
        """The tables of its suite.toml."""
        return self.run.tables

    @property
    def is_imported(self) -> bool:
        """Whether its coders are other tools': then it has no text of its own and was trained on none."""
        return self.run.is_imported

    def labels(self) -> list[str]:
        """Every label that some coder was evaluated under; the held-out text first."""
        return _in_order(self.coders)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of train.jsonl."""
        return self.run.read_log()

    @property
    def geometry(self) -> dict[str, Any] | None:
        """What `panscope geometry` wrote of this run, or None."""
        return self.run.geometry()


@dataclass(frozen=True)
class Results:
    """All runs of a report."""

    runs: tuple[ReportedRun, ...]
    label: str = HELD_OUT
    """The evaluation whose numbers are drawn wherever no figure is about another."""

    def coders(self) -> Iterator[CoderResults]:
        """Every coder of every run."""
        for run in self.runs:
            yield from run.coders

    def labels(self) -> list[str]:
        """Every label that some coder was evaluated under; the held-out text first."""
        return _in_order(self.coders())

    def drawn(self, coder: CoderResults) -> StoredEvaluation | None:
        """The evaluation of a coder that is drawn; None where it has none of this label."""
        return coder.evaluations.get(self.label)

    @property
    def folder(self) -> str:
        """The first run's folder, for commands that a reader can type."""
        return str(self.runs[0].folder)

    @property
    def measure(self) -> str:
        """The command that measures the first run."""
        return f"panscope eval {self.folder}" + (" --text FILE" if self.runs[0].is_imported else "")


def _in_order(coders: Iterable[CoderResults]) -> list[str]:
    """The labels of all their evaluations."""
    return in_order({label for coder in coders for label in coder.evaluations})


def named(place: str) -> str:
    """A path of this machine without its folders, which say nothing to a reader; hub ids and the like as they are."""
    return Path(place).name if Path(place).is_absolute() else place


def read_runs(folders: Sequence[Path | Run]) -> Results:
    """Read runs, or run folders; raises UserError for one that is none, has no finished coder, is given twice or is
    damaged."""
    opened = [folder if isinstance(folder, Run) else Run.open(folder) for folder in folders]
    places = [run.path.resolve() for run in opened]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"the run {str(place)!r} is given twice: name each run once")
    names = _names(places)
    return Results(tuple(_read_run(run, name) for run, name in zip(opened, names, strict=True)))


def _names(places: list[Path]) -> list[str]:
    """The folders' own names, with as many of their parents as it takes to tell them apart."""
    parts, depth = [place.parts for place in places], 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read_run(run: Run, name: str) -> ReportedRun:
    return ReportedRun(name, run, tuple(_read_coder(coder, name) for coder in run.coders()))


def _read_coder(coder: FinishedCoder, run: str) -> CoderResults:
    try:
        facts = _facts(coder.config, coder.name, run)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{str(coder.folder / store.CONFIG)!r} lacks {error}: it is of another version; give a run of this version"
        ) from None
    found = {label: coder.evaluation(label) for label in coder.labels()}
    return CoderResults(facts, {label: own for label, own in found.items() if own is not None})


def _facts(config: dict[str, Any], name: str, run: str) -> RunFacts:
    trained, wiring, schedule = config["training"]["coder"], config["wiring"], config.get("schedule", {})
    sites = len(wiring["reads"]) if WIRINGS[wiring["wiring"]].joins_columns else 1
    return RunFacts(
        run=run,
        name=name,
        wiring=wiring["wiring"],
        reads=wiring["reads"],
        predicts=wiring["predicts"],
        architecture=trained["architecture"],
        published=config["coder"]["architecture"],
        width=trained["width"],
        expansion=trained["width"] * sites / trained["d_in"],
        sparsity=_sparsity(config),
        sparsity_means=_meaning(trained),
        sparsity_from=schedule.get("sparsity_from") if schedule.get("sparsity_warmup_steps") else None,
    )


def _sparsity(config: dict[str, Any]) -> float | None:
    trained = config["training"]["coder"]
    if trained.get("target_l0") is not None:
        return trained["target_l0"]
    return trained["sparsity"] if store.knows_sparsity(config) else None


def _meaning(trained: dict[str, Any]) -> str:
    if coders.config_type(trained["architecture"]).selects_k:
        return "K"
    return "λ" if trained.get("target_l0") is None else "target L0"
