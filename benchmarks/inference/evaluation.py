"""The cost of evaluating many coders together, against evaluating each alone with whole passes of the language model.

    python -m benchmarks.inference.evaluation --model FOLDER --text FILE ...

It counts the blocks that are run and the seconds, and checks that the results are equal. `each alone` is what tools do
that evaluate one SAE at a time: for each coder a pass to find its site's mean, a clean pass, and a whole pass each with
the reconstruction, zeros and the mean in place. Both use the same code for everything else. The coders have random
weights, since the work does not depend on how well they reconstruct.

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
from rich.table import Table
from torch import Tensor

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.other_load import OtherLoad
from benchmarks.support.tables import markdown_table, wide_console
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

_TOLERANCE = 1e-5
"""Of results, relative or absolute: they differ by rounding."""
Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Options:
    """The cost of evaluating many coders together, against each alone."""

    model: str
    """Folder of a language model."""
    text: tuple[str, ...]
    """Text files."""
    kinds: tuple[str, ...] = ("resid_post", "attn_out", "mlp_out")
    """Kinds of sites; coders are at these sites of every layer."""
    widths: tuple[int, ...] = (256, 512)
    """F; at every site there is a coder of each width."""
    active: int = 16
    """K of the TopK coders."""
    tokens: int = 8_000
    """Tokens to evaluate on."""
    probes: int = 256
    """Sequences in which the uniformity of active latents is measured, with gradients at one token each."""
    interventions_per_pass: int = 4
    """Altered passes of one site that are run together as one pass."""
    context: int = 256
    """Tokens of a sequence at most."""
    repeats: int = 3
    """Evaluations of each kind."""
    out: Path = Path("benchmarks/results/evaluation.jsonl")
    """Results are appended to this file."""


class WholePasses:
    """A language model whose passes all run every block, from the tokens on."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    def run(self, *arguments: Any, splice: dict[Site, Any], start: Start | None = None, **options: Any) -> Reading:
        """One whole pass; the known outputs of `start` are put in place, and its blocks are run all the same."""
        given = {} if start is None else start.known_outputs
        put = {site: lambda _, tensor=tensor: tensor for site, tensor in given.items()}
        return self._lm.run(*arguments, splice=put | splice, **options)

    def gradients(
        self, token_ids: Tensor, attention_mask: Tensor, sites: list[Site], objective: Callable[[Tensor], Tensor]
    ) -> dict[Site, Tensor]:
        """The same as the language model's."""
        return self._lm.gradients(token_ids, attention_mask, sites, objective)


def main(options: Options) -> None:
    """Evaluate both ways in turns, compare the results, record and print."""
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

    ways = {"at once": at_once, "each alone": one_by_one}
    lines: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        results: dict[str, Results] = {}
        for way, work in ways.items():
            results[way], found = _watched(lm, work)
            lines.append(_setting(options) | {"way": way, "repeat": repeat, "coders": len(measured)} | found)
        check_equal(results["at once"], results["each alone"])
    JsonLines(options.out).append(lines)
    wide_console().print(table(lines))


def _watched(lm: LanguageModel, work: Callable[[], Results]) -> tuple[Results, dict[str, Any]]:
    """The results of one evaluation, and what it cost."""
    load_of_others = OtherLoad()
    with counting_blocks(lm) as blocks:
        began, cpu_began = time.perf_counter(), time.process_time()
        results = work()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    cost = {"seconds": seconds, "cpu_seconds": cpu_seconds, "blocks": blocks[0], "others": load_of_others.share()}
    return results, cost


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
    """A list with one number, the blocks run so far, whole or in part: counted at the first module in each block."""
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
    """Raise UserError unless all numbers are equal up to rounding."""
    for name, result in one.items():
        for field, value in result.items():
            if isinstance(value, int | float) and not math.isclose(
                value, other[name][field], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE
            ):
                raise UserError(f"{name}: {field} is {value} at once and {other[name][field]} alone")


def _setting(options: Options) -> dict[str, Any]:
    fields = asdict(options) | {"model": Path(options.model).name, "text": [Path(text).name for text in options.text]}
    del fields["out"]
    return fields | {"date": time.strftime("%F"), "machine": machine.facts()}


def table(lines: list[dict[str, Any]]) -> Table:
    """A row for each way, with medians over repeats; ratios are how many times as long `each alone` takes."""
    shown = markdown_table(("", "coders", "blocks run", "seconds", "ratio", "CPU seconds", "ratio"))
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
    run_command(main, Options)
