"""What is in run folders, read for the report: coders, evaluations by label, training logs; damage is a sentence.

Every JSON file must match its own seal and every table the checksum that its eval.json names, so no figure is drawn of
a damaged number. Tables (positions, latents, layers) are read only when a figure asks for them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from panscope.coders import files as store
from panscope.config import Config
from panscope.runs.run import RunFolder
from panscope.storage.atomic import checksum
from panscope.storage.sealed import read_sealed, read_sealed_toml
from panscope.types import Site, UserError

HELD_OUT = "held_out"
"""The label of the evaluation on the share of the text that no coder learned from."""
_SELECTING = ("topk", "batchtopk", "matryoshka")


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
class EvaluationResults:
    """One eval.json and the tables beside it."""

    folder: Path
    label: str
    content: dict[str, Any]

    @property
    def about(self) -> dict[str, Any]:
        """What it was measured on."""
        return self.content.get("evaluated_on", {})

    @property
    def suffix(self) -> str:
        """What stands in the names of its files."""
        return "" if self.label == HELD_OUT else f"-{self.label}"

    def table(self, name: str) -> list[dict[str, Any]] | None:
        """The rows of `positions`, `latents` or `layers`; None where this evaluation wrote none."""
        file = f"{name}{self.suffix}.parquet"
        xxh3 = self.content.get("files", {}).get(file)
        again = f"measure again by `panscope eval {self.folder.parents[1]}` and the flags it was made with"
        return None if xxh3 is None else read_table(self.folder / file, xxh3, again)


@dataclass(frozen=True)
class CoderResults:
    """A finished coder with all that was measured of it."""

    facts: RunFacts
    evaluations: dict[str, EvaluationResults]


@dataclass(frozen=True)
class Run:
    """One run folder."""

    name: str
    folder: Path
    suite: dict[str, Any]
    coders: tuple[CoderResults, ...]

    @property
    def is_imported(self) -> bool:
        """Whether its coders are other tools': then it has no text of its own and was trained on none."""
        return self.suite.get("coders") == []

    def labels(self) -> list[str]:
        """Every label that some coder was evaluated under; the held-out text first."""
        return _in_order(self.coders)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of train.jsonl."""
        return RunFolder(self.folder).read_log()

    @cached_property
    def geometry(self) -> dict[str, Any] | None:
        """What `panscope geometry` wrote of this run, or None."""
        path = self.folder / "geometry" / "summary.json"
        again = f"make it again by `panscope geometry {self.folder}`"
        return read_sealed(path, then=again) if path.exists() else None


@dataclass(frozen=True)
class Results:
    """All runs of a report."""

    runs: tuple[Run, ...]
    label: str = HELD_OUT
    """The evaluation whose numbers are drawn wherever no figure is about another."""

    def coders(self) -> Iterator[CoderResults]:
        """Every coder of every run."""
        for run in self.runs:
            yield from run.coders

    def labels(self) -> list[str]:
        """Every label that some coder was evaluated under; the held-out text first."""
        return _in_order(self.coders())

    def drawn(self, coder: CoderResults) -> EvaluationResults | None:
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
    found = {label for coder in coders for label in coder.evaluations}
    return sorted(found, key=lambda label: (label != HELD_OUT, label))


def named(place: str) -> str:
    """A path of this machine without its folders, which say nothing to a reader; hub ids and the like as they are."""
    return Path(place).name if Path(place).is_absolute() else place


def read_runs(folders: Sequence[Path]) -> Results:
    """Read run folders; raises UserError for one that is none, has no finished coder, is given twice or is damaged."""
    opened = [RunFolder.open(folder) for folder in folders]
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


def _read_run(folder: RunFolder, name: str) -> Run:
    names = folder.coder_names()
    if not names:
        raise UserError(
            f"the run {str(folder.path)!r} has no finished coder yet: go on with it by "
            f"`panscope train --resume {folder.path}`"
        )
    coders = tuple(_read_coder(folder, coder, name) for coder in names)
    return Run(name, folder.path, read_sealed_toml(folder.suite_file), coders)


def _read_coder(folder: RunFolder, coder: str, run: str) -> CoderResults:
    path = folder.coder(coder) / "config.json"
    config = read_sealed(path)
    try:
        facts = _facts(config, coder, run)
    except (KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} lacks {error}: it is of another version; give a run of this version") from None
    paths = sorted(folder.coder(coder).glob("eval*.json"))
    found = [_read_evaluation(path, coder, folder.path, config.get("xxh3")) for path in paths]
    return CoderResults(facts, {evaluation.label: evaluation for evaluation in found})


def _facts(config: dict[str, Any], name: str, run: str) -> RunFacts:
    trained, wiring, schedule = config["training"]["coder"], config["wiring"], config.get("schedule", {})
    sites = len(wiring["reads"]) if wiring["wiring"] == "crosscoder" else 1
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
    if trained["architecture"] in _SELECTING:
        return "K"
    return "λ" if trained.get("target_l0") is None else "target L0"


def _read_evaluation(path: Path, coder: str, run: Path, weights: Any) -> EvaluationResults:
    again = f"measure again by `panscope eval {run}`"
    content = read_sealed(path, then=again)
    if content.get("coder") != coder:
        raise UserError(f"the file {str(path)!r} is not of this coder; {again}")
    if content.get("weights", weights) != weights:
        raise UserError(
            f"the file {str(path)!r} is of other weights than the coder has now; {again} and the flags it was made "
            "with, or delete the file"
        )
    label = path.stem.removeprefix("eval").removeprefix("-") or HELD_OUT
    return EvaluationResults(path.parent, label, content)


def read_table(path: Path, xxh3: str, then: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file that must have this checksum; raises UserError, with what to do `then`."""
    if checksum(path) != xxh3:
        raise UserError(f"the file {str(path)!r} is damaged: it does not match its checksum; {then}")
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"the file {str(path)!r} cannot be read: {error}; {then}") from None
