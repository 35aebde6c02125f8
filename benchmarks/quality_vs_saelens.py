"""Panscope against SAELens: the held-out FVU that each reaches at equal L0, on the same rows, for the same budget.

Run from the repository's root: python -m benchmarks.quality_vs_saelens --text STORIES.jsonl (pip group `bench`).

Panscope trains its recipes as they are fitted to this run. SAELens trains every setting of `saelens_side.RECIPES` at
every rate of a grid, and each point of ours is compared with the best of its curves at our L0. Both were tuned on these
very rows: our recipes `panscope` and `panscope_standardised` once for all sites and sparsities (docs/LOG.md), SAELens
by taking the best curve at each point. `defaults` is the curve of what SAELens does where nothing is said.

A run that is in the file of results is not done again; delete its line, or the file, to measure it anew.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import machine, panscope_side, saelens_side
from benchmarks.quality import Quality, fvu_at
from benchmarks.rows import Budget, Rows, make_rows
from panscope.data.documents import DataConfig
from panscope.lms.facts import ModelFacts, facts_of
from panscope.lms.load import LanguageModelConfig, load
from panscope.storage.json_lines import JsonLines
from panscope.types import Site

_K = (8, 16, 32)
_TARGETS = (8, 12, 16, 24)
LADDERS = {
    "topk": {"panscope": _K, "panscope_standardised": _K, "llama_scope": _K},
    "jumprelu": {"panscope": _TARGETS, "panscope_standardised": _TARGETS},
    "gated": {"panscope": (0.05, 0.08, 0.12, 0.2), "panscope_standardised": (0.01, 0.015, 0.02, 0.03)},
}
"""Panscope's recipes and the K, target L0 or coefficient that each is trained at."""

SAELENS_LADDERS = {
    "topk": _K,
    "topk-default": _K,
    "jumprelu-step": (0.06, 0.1, 0.16, 0.25, 0.4, 0.6),
    "jumprelu-default": (0.1, 0.3, 1.0),
    "gated": (0.35, 0.6, 0.9, 1.3, 2.0),
    "gated-default": (1.0, 2.0, 4.0),
}
"""The same for each SAELens recipe: wide enough for its curves to reach past ours at both ends."""

RATES = (3e-3, 1e-2)
"""The learning rates SAELens is tuned over; at 1e-3 all three are worse here, at 2e-2 JumpReLU and Gated."""
DEFAULT_RATE = 3e-4
"""SAELens' own, and the only one its `-default` recipes get."""


Curves = dict[tuple[str, float], list[Quality]]
"""SAELens' points by recipe and learning rate."""


@dataclass(frozen=True)
class Options:
    """Panscope against SAELens at equal L0."""

    text: tuple[str, ...]
    """Text files."""
    model: str = "../shared/models/stories260K"
    sites: tuple[str, ...] = ("L02.resid_post", "L03.mlp_out", "L01.attn_z")
    architectures: tuple[Literal["topk", "jumprelu", "gated"], ...] = ("topk", "jumprelu", "gated")
    tools: tuple[Literal["panscope", "saelens"], ...] = ("panscope", "saelens")
    """Which to train; the table shows both, from the file."""
    budget: Budget = field(default_factory=Budget)
    held_out: int = 50_000
    """Rows to measure on."""
    rows_seed: int = 0
    threads: int = 1
    out: Path = Path("benchmarks/results/quality_vs_saelens.jsonl")


@dataclass(frozen=True)
class Run:
    """One coder to train."""

    tool: str
    architecture: str
    recipe: str
    site: str
    sparsity: float
    learning_rate: float | None
    """None where the recipe says it."""


def main(options: Options) -> None:
    """Train what is missing, then print the table."""
    torch.set_num_threads(options.threads)
    console, results = Console(width=160), JsonLines(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = _lines(results, options)
    missing = [run for run in _runs(options) if _key(asdict(run)) not in lines]
    if missing:
        console.print(f"{len(missing)} coders to train; making the rows ...")
        lm_config = LanguageModelConfig(path=options.model)
        facts, rows = facts_of(lm_config), _rows(options, lm_config)
        for run in missing:
            line = _line(run, options, *_train(run, rows[Site.parse(run.site)], options.budget, facts))
            results.append([line])
            lines[_key(line)] = line
            console.print(_said(line), highlight=False)
    for architecture in options.architectures:
        console.print(_table(architecture, options, list(lines.values())))


def _runs(options: Options) -> Iterator[Run]:
    for architecture in options.architectures:
        for site in options.sites:
            if "panscope" in options.tools:
                for recipe, ladder in LADDERS[architecture].items():
                    for sparsity in ladder:
                        yield Run("panscope", architecture, recipe, site, sparsity, None)
            if "saelens" in options.tools:
                yield from _saelens_runs(architecture, site)


def _saelens_runs(architecture: str, site: str) -> Iterator[Run]:
    for recipe, settings in saelens_side.RECIPES.items():
        if settings.architecture == architecture:
            for rate in RATES if settings.decays else (DEFAULT_RATE,):
                for sparsity in SAELENS_LADDERS[recipe]:
                    yield Run("saelens", architecture, recipe, site, sparsity, rate)


def _rows(options: Options, lm_config: LanguageModelConfig) -> dict[Site, Rows]:
    lm = load(lm_config)
    data = DataConfig(text=options.text, context=lm.context)
    sites = [Site.parse(site) for site in options.sites]
    training = options.budget.steps * options.budget.batch
    return make_rows(lm, data, sites, training=training, held_out=options.held_out, seed=options.rows_seed)


def _train(run: Run, rows: Rows, budget: Budget, lm: ModelFacts) -> tuple[Quality, float]:
    if run.learning_rate is None:
        point = panscope_side.point(run.recipe, run.architecture, run.sparsity)
        return panscope_side.train(point, Site.parse(run.site), rows, lm=lm, budget=budget)
    return saelens_side.train(run.recipe, rows, sparsity=run.sparsity, learning_rate=run.learning_rate, budget=budget)


def _line(run: Run, options: Options, quality: Quality, seconds: float) -> dict[str, Any]:
    version = {"panscope": panscope_side.VERSION, "saelens": saelens_side.VERSION}[run.tool]
    measured = asdict(quality) | {"seconds": round(seconds, 2), "version": version, "machine": machine.facts()}
    return asdict(run) | _setting(options) | measured


def _setting(options: Options) -> dict[str, Any]:
    """What must be the same for two lines to be comparable."""
    named = {"model": Path(options.model).name, "text": [Path(text).name for text in options.text]}
    return named | asdict(options.budget) | {"held_out": options.held_out, "rows_seed": options.rows_seed}


def _lines(results: JsonLines, options: Options) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The lines of the file that were measured in this setting, by run."""
    setting = _setting(options).items()
    comparable = [line for line in results.read() if all(line[key] == value for key, value in setting)]
    return {_key(line): line for line in comparable}


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in Run.__dataclass_fields__)


def _said(line: dict[str, Any]) -> str:
    rate = "" if line["learning_rate"] is None else f" at {line['learning_rate']:g}"
    what = f"{line['tool']} {line['recipe']} {line['site']} {line['sparsity']:g}{rate}"
    return f"{what}: L0 {line['l0']:.2f}  FVU {line['fvu']:.4f}  dead {line['dead']:.1%}  {line['seconds']:.0f} s"


def _table(architecture: str, options: Options, lines: list[dict[str, Any]]) -> Table:
    """A row for each of our coders, and the geometric mean of each curve's ratios; Markdown, for docs/LOG.md."""
    table = Table(title=f"{architecture}: held-out FVU at equal L0", box=box.MARKDOWN)
    for name in _COLUMNS:
        table.add_column(name, no_wrap=True)
    for site in options.sites:
        here = [line for line in lines if (line["architecture"], line["site"]) == (architecture, site)]
        curves = _curves(here)
        for recipe in LADDERS[architecture]:
            ours = sorted((line for line in here if line["recipe"] == recipe), key=lambda line: line["l0"])
            ratios = [_add_row(table, line, curves) for line in ours]
            means = [_number(_geometric_mean(column), 3) for column in zip(*ratios, strict=True)]
            if means:
                table.add_row(site, recipe, "mean", "", "", "", means[0], "", means[1])
    return table


_COLUMNS = ("site", "recipe", "L0", "Panscope", "SAELens, best", "by", "ratio", "SAELens, defaults", "ratio")


def _add_row(table: Table, line: dict[str, Any], curves: Curves) -> tuple[float, float]:
    """One coder of ours; returns its FVU over that of SAELens' best and of its defaults, 0 where neither reaches it."""
    l0, fvu = line["l0"], line["fvu"]
    best, setting = _best(l0, curves)
    default = _defaults(l0, curves)
    ratios = fvu / best, fvu / default
    table.add_row(
        line["site"],
        line["recipe"],
        f"{l0:.1f}",
        f"{fvu:.4f}",
        _number(best, 4),
        setting,
        _number(ratios[0], 3),
        _number(default, 4),
        _number(ratios[1], 3),
    )
    return ratios


def _curves(lines: list[dict[str, Any]]) -> Curves:
    curves: Curves = defaultdict(list)
    for line in lines:
        if line["tool"] == "saelens":
            curves[line["recipe"], line["learning_rate"]].append(Quality(line["l0"], line["fvu"], line["dead"]))
    return curves


def _best(l0: float, curves: Curves) -> tuple[float, str]:
    """The lowest FVU of any curve at `l0`, infinity where none reaches it, and which curve that is."""
    found = [(fvu_at(l0, curve), f"{recipe} {rate:g}") for (recipe, rate), curve in curves.items()]
    return min((pair for pair in found if pair[0] < math.inf), default=(math.inf, "none reaches it"))


def _defaults(l0: float, curves: Curves) -> float:
    return min(
        (fvu_at(l0, curve) for (name, _), curve in curves.items() if name.endswith("-default")), default=math.inf
    )


def _number(value: float, digits: int) -> str:
    """A dash for what could not be compared."""
    return f"{value:.{digits}f}" if 0 < value < math.inf else "-"


def _geometric_mean(ratios: Iterable[float]) -> float:
    """Over the coders that could be compared; 0 where none could."""
    known = [math.log(ratio) for ratio in ratios if ratio > 0]
    return math.exp(sum(known) / len(known)) if known else 0.0


if __name__ == "__main__":
    main(tyro.cli(Options))
