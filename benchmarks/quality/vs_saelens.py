"""The held-out FVU of Panscope's coders against SAELens' at equal L0: same rows, same budget.

    python -m benchmarks.quality.vs_saelens --text STORIES.jsonl

needs SAELens (`pip install --group bench -e .`).

Panscope trains its recipes, which adapt to the length of the run. SAELens trains every setting of
`saelens_trainer.RECIPES` at every learning rate of a grid, and each of Panscope's coders is compared with the best of
SAELens' curves at the same L0. Both were tuned on these rows: the recipes `panscope` and `panscope_standardised` once
for all sites and sparsities (docs/LOG.md), SAELens by taking the best curve at each point. `defaults` is the curve of
SAELens' default settings.

A coder whose line is in the results file is not trained again; delete the line, or the file, to repeat it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from benchmarks.quality import panscope_trainer, saelens_trainer
from benchmarks.quality.measure import Quality, fvu_at
from benchmarks.quality.rows import Budget, Rows, make_rows
from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.tables import markdown_table, wide_console
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
"""For each of Panscope's recipes the values of K, target L0 or coefficient that coders are trained at."""

SAELENS_LADDERS = {
    "topk": _K,
    "topk-default": _K,
    "jumprelu-step": (0.06, 0.1, 0.16, 0.25, 0.4, 0.6),
    "jumprelu-default": (0.1, 0.3, 1.0),
    "gated": (0.35, 0.6, 0.9, 1.3, 2.0),
    "gated-default": (1.0, 2.0, 4.0),
}
"""The same for each of SAELens' recipes, wide enough for its curves to extend beyond Panscope's at both ends."""

RATES = (3e-3, 1e-2)
"""SAELens' learning rates; here all three architectures are worse at 1e-3, and JumpReLU and Gated at 2e-2."""
DEFAULT_RATE = 3e-4
"""SAELens' default learning rate, and the only one that its `-default` recipes are trained at."""


Curves = dict[tuple[str, float], list[Quality]]
"""SAELens' coders by recipe and learning rate."""


@dataclass(frozen=True)
class Options:
    """The held-out FVU of Panscope's coders against SAELens' at equal L0."""

    text: tuple[str, ...]
    """Text files."""
    model: str = "build/evidence/models/stories260K"
    """Folder of a language model."""
    sites: tuple[str, ...] = ("L02.resid_post", "L03.mlp_out", "L01.attn_z")
    """Sites to train at."""
    architectures: tuple[Literal["topk", "jumprelu", "gated"], ...] = ("topk", "jumprelu", "gated")
    tools: tuple[Literal["panscope", "saelens"], ...] = ("panscope", "saelens")
    """Tools whose missing coders are trained; the table shows both, from the results file."""
    budget: Budget = field(default_factory=Budget)
    held_out: int = 50_000
    """Rows to measure on."""
    rows_seed: int = 0
    """The seed of the order in which documents are read."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("benchmarks/results/quality_vs_saelens.jsonl")
    """Results are appended to this file, and coders in it are not trained again."""


@dataclass(frozen=True)
class Run:
    """One coder to train."""

    tool: str
    architecture: str
    recipe: str
    site: str
    sparsity: float
    learning_rate: float | None
    """None where the recipe sets it."""


def main(options: Options) -> None:
    """Train what is missing, then print the table."""
    torch.set_num_threads(options.threads)
    console, results = wide_console(), JsonLines(options.out)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = _lines(results, options)
    missing = [run for run in _runs(options) if _key(asdict(run)) not in lines]
    if missing:
        console.print(f"{len(missing)} coders to train; collecting the rows ...")
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
    for recipe, settings in saelens_trainer.RECIPES.items():
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
        point = panscope_trainer.point(run.recipe, run.architecture, run.sparsity)
        return panscope_trainer.train(point, Site.parse(run.site), rows, lm=lm, budget=budget)
    return saelens_trainer.train(
        run.recipe, rows, sparsity=run.sparsity, learning_rate=run.learning_rate, budget=budget
    )


def _line(run: Run, options: Options, quality: Quality, seconds: float) -> dict[str, Any]:
    version = {"panscope": panscope_trainer.VERSION, "saelens": saelens_trainer.VERSION}[run.tool]
    measured = asdict(quality) | {"seconds": round(seconds, 2), "version": version, "machine": machine.facts()}
    return asdict(run) | _setting(options) | measured


def _setting(options: Options) -> dict[str, Any]:
    """The fields in which two lines must agree to be comparable."""
    named = {"model": Path(options.model).name, "text": [Path(text).name for text in options.text]}
    return named | asdict(options.budget) | {"held_out": options.held_out, "rows_seed": options.rows_seed}


def _lines(results: JsonLines, options: Options) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The lines of the file that are comparable with this setting, by run."""
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
    """A row for each of Panscope's coders, and the geometric mean of the ratios of each recipe."""
    table = markdown_table(_COLUMNS, title=f"{architecture}: held-out FVU at equal L0")
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
    """Add one of Panscope's coders; returns its FVU over SAELens' best and defaults, 0 where none has this L0."""
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
    """The lowest FVU of any curve at `l0` and the name of that curve; infinity where no curve extends to `l0`."""
    found = [(fvu_at(l0, curve), f"{recipe} {rate:g}") for (recipe, rate), curve in curves.items()]
    return min((pair for pair in found if pair[0] < math.inf), default=(math.inf, "no curve has this L0"))


def _defaults(l0: float, curves: Curves) -> float:
    return min(
        (fvu_at(l0, curve) for (name, _), curve in curves.items() if name.endswith("-default")), default=math.inf
    )


def _number(value: float, digits: int) -> str:
    """A number, or a dash where there was nothing to compare with."""
    return f"{value:.{digits}f}" if 0 < value < math.inf else "-"


def _geometric_mean(ratios: Iterable[float]) -> float:
    """The mean over the coders that could be compared; 0 if there are none."""
    known = [math.log(ratio) for ratio in ratios if ratio > 0]
    return math.exp(sum(known) / len(known)) if known else 0.0


if __name__ == "__main__":
    run_command(main, Options)
