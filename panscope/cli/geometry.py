"""`panscope geometry`: how the decoder vectors of a run's coders lie to each other, to chance and to tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from panscope.cli.flags import flag
from panscope.geometry.neighbours import Counts
from panscope.runs.geometry import Entry, GeometryOptions, look
from panscope.runs.run import RunFolder
from panscope.types import UserError

_Analysis = Literal["mmcs", "matching", "splitting", "neighbourhood", "tokens"]
_ROWS_SHOWN = 20


@dataclass(frozen=True)
class Geometry:
    """Compare the decoder vectors of a run's coders and write what was found into RUN/geometry.

    With no flags: for every coder how near its latents are to each other and to chance; for coders of the same wiring
    and sites who matches whom and, between widths, which latents split and which are new; one neighbourhood a site.

    For example
      panscope geometry runs/demo
      panscope geometry runs/demo --coder L03R-4x-topk-k16 --latent 17         its neighbourhood, in two dimensions
      panscope geometry runs/demo --against runs/other                          the same sites, two runs
    """

    run_folder: Annotated[Path, tyro.conf.Positional, flag("RUN")]
    """The folder of a run."""
    coder: Annotated[tuple[str, ...], flag("NAME ...")] = ()
    """Only these coders, and only pairs among them; one alone is compared with all others at its sites."""
    latent: Annotated[tuple[int, ...], flag("N ...")] = ()
    """Only the neighbourhoods of these latents of the coder named."""
    against: Annotated[Path | None, flag("RUN2")] = None
    """Compare with the coders of this other run, at equal wiring and sites."""
    only: Annotated[tuple[_Analysis, ...], flag("mmcs|matching|splitting|neighbourhood|tokens ...")] = ()
    """Only these analyses."""
    tokens: bool = False
    """Find the tokens that every latent points to, too; reads the language model."""
    pairs: Annotated[int, flag("N")] = 10
    """At most so many matchings and so many splittings a site."""
    neighbours: Annotated[tuple[int, int, int], flag("OWN OTHER WIDER")] = (6, 6, 24)
    """How many neighbours of a latent: in its own coder, in another, in the widest."""
    seed: Annotated[int, flag("N")] = 0
    """Of the random baselines and the layout."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        self._check()
        folder = RunFolder.open(self.run_folder)
        with _Drawn(console) as listener:
            entries = look(folder, self._asked(), listener)
        for table in _tables(entries):
            console.print(table)
        _say(console, f"Geometry is in {folder.path / 'geometry'}: {len(entries)} analyses; summary.json lists all")
        return 0

    def _check(self) -> None:
        if self.pairs < 1:
            raise UserError(f"--pairs {self.pairs} is too little: give at least 1")
        if min(self.neighbours) < 0:
            given = " ".join(map(str, self.neighbours))
            raise UserError(f"--neighbours {given} has a number below 0: give three numbers from 0")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed} is below 0: give a number from 0")
        if self.latent and self.only and "neighbourhood" not in self.only:
            raise UserError("--latent asks for a neighbourhood, but --only does not name it: add it, or leave one out")

    def _asked(self) -> GeometryOptions:
        return GeometryOptions(
            analyses=self._analyses(),
            coders=self.coder,
            latents=self.latent,
            against=self.against,
            pairs=self.pairs,
            counts=Counts(*self.neighbours),
            seed=self.seed,
            device=self.device,
        )

    def _analyses(self) -> tuple[str, ...]:
        if self.only:
            chosen: tuple[str, ...] = self.only
        elif self.latent:
            chosen = ("neighbourhood",)
        elif self.against is not None:
            chosen = ("matching", "splitting")
        else:
            chosen = ("mmcs", "matching", "splitting", "neighbourhood")
        return (*chosen, "tokens") if self.tokens else chosen


class _Drawn:
    """Draws one bar for what is under way; where the output is not a terminal, only lines are printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> "_Drawn":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line."""
        _say(self._console, text)

    def doing(self, what: str, done: int, total: int) -> None:
        """Move the bar, or begin a new one."""
        if self._task is None or what != self._what:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._what = self._progress.add_task(what, total=total), what
        self._progress.update(self._task, completed=done, total=total)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


_Row = Sequence[str]


def _tables(entries: Sequence[Entry]) -> list[Table]:
    """One short table a kind of analysis that there is."""
    by_kind: dict[str, list[Entry]] = {}
    for entry in entries:
        by_kind.setdefault(entry["kind"], []).append(entry)
    return [_table(kind, [row for entry in found for row in _ROWS[kind](entry)]) for kind, found in by_kind.items()]


def _table(kind: str, rows: Sequence[_Row]) -> Table:
    names, *headings = _HEADINGS[kind]
    table = Table()
    table.add_column(names, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows[:_ROWS_SHOWN]:
        table.add_row(*map(escape, row))
    if len(rows) > _ROWS_SHOWN:
        table.add_row(f"... and {len(rows) - _ROWS_SHOWN} more")
    return table


_HEADINGS = {
    "mmcs": ("coder", "MMCS", "± s.e.m.", "chance,\nmean", "chance,\nmax", "J.-L. bound"),
    "matching": ("matching", "median\ncosine", "chance,\nmedian", "above all\nchance"),
    "splitting": ("narrow > wide", "new", "split", "explained,\nmedian", "chance,\nmedian"),
    "neighbourhood": ("neighbourhood of", "latents", "least\ncosine", "least to\nthe seed"),
    "tokens": ("tokens of", "embedding,\nmedian", "unembedding,\nmedian"),
}


def _mmcs(entry: Entry) -> list[_Row]:
    fields = ("mean", "sem", "random_mean", "random_max", "jl")
    return [(name, *(_number(found[field]) for field in fields)) for name, found in entry["numbers"].items()]


def _matching(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    medians = _median(found["cosine"]), _median(found["random"])
    return [(f"{entry['a']} > {entry['b']}", *medians, _share(found["above_random"]))]


def _splitting(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    shares = _share(found["new"]), _share(found["split"])
    medians = _median(found["explained"]), _median(found["random_explained"])
    return [(f"{entry['narrow']} > {entry['wide']}", *shares, *medians)]


def _neighbourhood(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    least = _number(found["min_cosine"]), _number(found["min_cosine_to_seed"])
    return [(f"{entry['coder']} latent {entry['latent']}", str(found["points"]), *least)]


def _tokens(entry: Entry) -> list[_Row]:
    found = entry["numbers"]
    return [(entry["coder"], *(_median(found[name]) if name in found else "same" for name in _MATRICES))]


_MATRICES = ("embedding", "unembedding")
_ROWS: dict[str, Any] = {
    "mmcs": _mmcs,
    "matching": _matching,
    "splitting": _splitting,
    "neighbourhood": _neighbourhood,
    "tokens": _tokens,
}


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"


def _share(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.1%}"


def _median(spread: dict[str, Any]) -> str:
    return _number(spread["quantiles"]["0.5"])
