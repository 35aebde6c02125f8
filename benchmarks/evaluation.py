"""One evaluation for all coders against each coder alone with whole passes: block passes, wall time, equal numbers.

Run from the repository's root: python -m benchmarks.evaluation --model FOLDER --text FILE ...

The naive way is what tools do that know one SAE at a time: for each coder a pass to find its site's mean, a clean pass,
and a whole pass each for its reconstruction, zeros and the mean. Both ways use the same code for everything else. The
coders have random weights: how well they reconstruct changes nothing about the work.

Shape letters: F latents.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from benchmarks.other_load import OtherLoad
from panscope import coders
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.data.documents import DataConfig, open_documents
from panscope.data.tokens import TokenStream
from panscope.evals.evaluate import evaluate
from panscope.evals.spec import EvalSpec
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel, Reading, Start
from panscope.storage.json_lines import JsonLines
from panscope.types import Site, UserError

_NEAR = 1e-5
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Options:
    """All coders at once against each alone."""

    model: str
    """Folder of a language model."""
    text: tuple[str, ...]
    """Text files."""
    kinds: tuple[str, ...] = ("resid_post", "attn_out", "mlp_out")
    """Sites of every layer."""
    widths: tuple[int, ...] = (256, 512)
    """F; a coder at every site for each."""
    active: int = 16
    """K of the TopK coders."""
    tokens: int = 8_000
    probes: int = 256
    """Sequences in which the uniformity of active latents is measured."""
    interventions_per_pass: int = 4
    """Altered passes of one site that make one pass."""
    context: int = 256
    repeats: int = 3
    out: Path = Path("benchmarks/results/evaluation.jsonl")
    """Results are appended."""


class WholePasses:
    """A language model of which every pass begins at the text."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def run(self, *arguments: Any, splice: dict[Site, Any], start: Start | None = None, **options: Any) -> Reading:
        """One whole pass, with what would have been given put in place at its site."""
        given = {} if start is None else start.known_outputs
        put = {site: lambda _, tensor=tensor: tensor for site, tensor in given.items()}
        return self._lm.run(*arguments, splice=put | splice, **options)

    def gradients(
        self, token_ids: Tensor, attention_mask: Tensor, sites: list[Site], objective: Callable[[Tensor], Tensor]
    ) -> dict[Site, Tensor]:
        """As the model gives them."""
        return self._lm.gradients(token_ids, attention_mask, sites, objective)


def main(options: Options) -> None:
    """Measure both ways in turns, compare their numbers, record and print."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lm = load(LanguageModelConfig(path=options.model, device="cpu"))
    measured = _coders(options, lm)
    open_tokens = _text(options, lm)

    question = EvalSpec(
        tokens=options.tokens, probes=options.probes, interventions_per_pass=options.interventions_per_pass
    )

    def of(model: LanguageModel | WholePasses, some: Mapping[str, WiredCoder], asked: EvalSpec) -> Results:
        results = evaluate(model, open_tokens, some, context=options.context, spec=asked)
        return {name: result.fields for name, result in results.items()}

    def at_once() -> Results:
        return of(lm, measured, question)

    def one_by_one() -> Results:
        whole, alone = WholePasses(lm), replace(question, interventions_per_pass=1)
        return {name: of(whole, {name: coder}, alone)[name] for name, coder in measured.items()}

    lines: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        results = {}
        for way, work in {"at once": at_once, "each alone": one_by_one}.items():
            load_of_others = OtherLoad()
            with counting_blocks(lm) as blocks:
                began, worked = time.perf_counter(), time.process_time()
                results[way] = work()
                seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
            found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "blocks": blocks[0], "coders": len(measured)}
            lines.append(_setting(options) | {"way": way, "repeat": repeat, "others": load_of_others.share()} | found)
        check_equal(results["at once"], results["each alone"])
    JsonLines(options.out).append(lines)
    Console(width=160).print(table(lines))


def _coders(options: Options, lm: LanguageModel) -> dict[str, WiredCoder]:
    generator, made = torch.Generator().manual_seed(0), {}
    for site in (Site(layer, kind) for layer in range(lm.n_layers) for kind in options.kinds):
        for width in options.widths:
            d = lm.width(site)
            fields = {"d_in": d, "d_out": d, "width": width, "sparsity": options.active}
            coder = coders.build(coders.config_type("topk").read(fields, "the coder"))
            coder.initialise(generator)
            made[f"{site}-{width}"] = WiredCoder(Wiring(wiring="sae", reads=(site,), predicts=(site,)), coder)
    return made


def _text(options: Options, lm: LanguageModel) -> Callable[[], TokenStream]:
    data = DataConfig(text=options.text, context=options.context, held_out=0.0)
    documents = open_documents(data)
    return lambda: TokenStream(documents, lm.tokenizer, data, part="all", seed=0, epochs=1)


@contextmanager
def counting_blocks(lm: LanguageModel) -> Iterator[list[int]]:
    """How many blocks are run, whole or in part, on one batch each: counted at the first module inside each."""
    blocks, runs = lm.model.get_submodule(lm.family.blocks), [0]

    def count(*_: object) -> None:
        runs[0] += 1

    handles = [next(block.children()).register_forward_hook(count) for block in blocks.children()]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def check_equal(one: Results, other: Results) -> None:
    """Raise UserError unless all numbers are equal, relatively or absolutely, but for rounding."""
    for name, result in one.items():
        for field, value in result.items():
            if isinstance(value, int | float) and not math.isclose(
                value, other[name][field], rel_tol=_NEAR, abs_tol=_NEAR
            ):
                raise UserError(f"{name}: {field} is {value} at once and {other[name][field]} alone")


def _setting(options: Options) -> dict[str, Any]:
    fields = asdict(options) | {"model": Path(options.model).name, "text": [Path(text).name for text in options.text]}
    del fields["out"]
    return fields | {"date": time.strftime("%F"), "machine": machine.facts()}


def table(lines: list[dict[str, Any]]) -> Table:
    """A row for each way: Markdown."""
    shown = Table(box=box.MARKDOWN)
    for name in ("", "coders", "blocks run", "seconds", "times", "of the cores", "times"):
        shown.add_column(name, no_wrap=True)
    for way in ("at once", "each alone"):
        of = [line for line in lines if line["way"] == way]
        cells = [f"{of[0]['coders']}", f"{of[0]['blocks']:,}"]
        for clock in ("seconds", "cpu_seconds"):
            taken, alone = _median(lines, way, clock), _median(lines, "each alone", clock)
            cells += [f"{taken:.2f}", f"{alone / taken:.1f}"]
        shown.add_row(way, *cells)
    return shown


def _median(lines: list[dict[str, Any]], way: str, clock: str) -> float:
    return statistics.median(line[clock] for line in lines if line["way"] == way)


if __name__ == "__main__":
    main(tyro.cli(Options))
