"""The overhead of `attach` on a forward pass, and `encode` and `decode` of a wide coder against SAELens.

    python -m benchmarks.inference.attach --peers PATH_TO_THE_PYTHON_WITH_SAELENS

Three passes are timed: the model alone; with hooks that only do the coders' arithmetic (encoding, and for `spliced`
also decoding and replacing); with coders attached. The overhead is the third less the second, as a share of the first.
The arithmetic is timed within the pass, because there it displaces the model's weights from the caches.

SAELens runs in an interpreter of its own (`make peers`) with the same weights and rows. The two alternate, and their
reconstructions must agree. Without that interpreter only Panscope is timed.

Shape letters: B rows, D width of a site, F latents.
"""

import functools
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.other_load import OtherLoad
from benchmarks.support.tables import markdown_table, wide_console
from panscope import coders
from panscope.coders.inference import KernelsName
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.formats import FORMATS
from panscope.formats.base import ImportedCoder
from panscope.intervene.attach import attach
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.loading.loaded_coder import LoadedCoder
from panscope.storage.json_lines import JsonLines
from panscope.types import Latents, Site, UserError

_MAX_DIFFERENCE = 1e-4
"""Of the two reconstructions, relative to their size."""
_SAELENS_SCRIPT = Path(__file__).with_name("saelens_codes.py")
Line = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The overhead of `attach`, and `encode` and `decode` against SAELens."""

    model: str = "panscope://demo"
    """The language model of the passes: a folder, a hub id or panscope://demo."""
    sequences: tuple[int, ...] = (8, 1)
    """Sequences of a batch; one measurement for each value."""
    context: tuple[int, ...] = (128, 64)
    """Tokens of a sequence, a value for each measurement."""
    attached_width: int = 4096
    """F of the attached coders, one at the residual stream of every layer."""
    width: int = 65_536
    """F of the coder that is compared with SAELens."""
    d: int = 768
    """D of that coder."""
    rows: int = 512
    """B for that coder."""
    active: int = 32
    """L0 of every coder."""
    architectures: tuple[str, ...] = ("topk", "jumprelu")
    """Architectures to compare with SAELens."""
    repeats: int = 7
    """Repeats of encode and decode."""
    passes: int = 50
    """Repeats of a pass."""
    device: str = "cpu"
    """Where Panscope runs; SAELens always runs on the CPU."""
    peers: Path = Path(os.environ.get("PANSCOPE_PEERS", ".venv-peers/bin/python"))
    """The Python interpreter that has SAELens."""
    out: Path = Path("benchmarks/results/attach.jsonl")
    """Results are appended to this file."""


@torch.no_grad()
def main(options: Options) -> None:
    """Measure, record and print."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    others = OtherLoad()
    lines: list[Line] = []
    for sequences, context in zip(options.sequences, options.context, strict=True):
        lines += passes(options, sequences, context)
    for architecture in options.architectures:
        lines += codes(options, architecture)
    common = {"date": time.strftime("%F"), "machine": machine.facts(), "others": others.share()}
    JsonLines(options.out).append([line | common for line in lines])
    wide_console().print(table(lines))


def passes(options: Options, sequences: int, context: int) -> list[Line]:
    """The lines for reading codes and for splicing: the model alone, with the arithmetic, and with coders attached."""
    lm = load(LanguageModelConfig(path=options.model, device=options.device))
    size = (sequences, min(context, lm.context))
    ids = torch.randint(3, lm.vocabulary, size, generator=torch.Generator().manual_seed(0)).to(lm.device)
    sites = [Site(layer, "resid_post") for layer in range(lm.n_layers)]
    made = [_coder(options, "topk", lm.width(site), options.attached_width, site) for site in sites]
    work: dict[str, Callable[[], object]] = {
        "forward": lambda: _forward(lm, ids),
        "encoding": lambda: _hooked(lm, ids, made, spliced=False),
        "attached": lambda: _attached(lm, ids, made, spliced=False),
        "encoding and decoding": lambda: _hooked(lm, ids, made, spliced=True),
        "spliced": lambda: _attached(lm, ids, made, spliced=True),
    }
    seconds = _in_turns(work, options, options.passes)
    lines: list[Line] = []
    for way, own in (("attached", "encoding"), ("spliced", "encoding and decoding")):
        added = [whole - apart for whole, apart in zip(seconds[way], seconds[own], strict=True)]
        lines.append({"what": way, "model": options.model, "coders": len(made), "width": options.attached_width,
                      "tokens": ids.numel(), "kernels": made[0].kernels,
                      "forward_ms": _median(seconds["forward"]), "with_arithmetic_ms": _median(seconds[own]),
                      "attached_ms": _median(seconds[way]), "added_ms": _median(added),
                      "added_share": _median(added) / _median(seconds["forward"])})  # fmt: skip
    return lines


def codes(options: Options, architecture: str) -> list[Line]:
    """The lines for encode and decode of one wide coder: sparse kernels, reference and SAELens."""
    site = Site(0, "resid_post")
    ours = {
        name: _coder(options, architecture, options.d, options.width, site, name) for name in ("sparse", "reference")
    }
    x = torch.randn(options.rows, options.d, generator=torch.Generator().manual_seed(1)).to(options.device)
    work: dict[str, Callable[[], object]] = {}
    for name, coder in ours.items():
        known = coder.encode(x)
        work[f"{name} encode"] = lambda coder=coder: coder.encode(x)
        work[f"{name} decode"] = lambda coder=coder, known=known: coder.decode(known)
    with tempfile.TemporaryDirectory() as folder:
        other = SaelensProcess(Path(folder), options, ours["reference"], x) if options.peers.is_file() else None
        if other is not None:
            work |= {f"SAELens {verb}": functools.partial(other.seconds, verb) for verb in ("encode", "decode")}
        seconds = _in_turns(work, options, options.repeats)
        if other is not None:
            _check_equal(other.reconstruction(), ours["sparse"].decode(ours["sparse"].encode(x)))
    l0 = float(ours["sparse"].encode(x).l0().double().mean())
    version = None if other is None else other.about
    return [{"what": what, "architecture": architecture, "width": options.width, "d": options.d, "rows": options.rows,
             "l0": l0, "ms": _median(took), "saelens": version} for what, took in seconds.items()]  # fmt: skip


class SaelensProcess:
    """SAELens in its own process, with the same weights and rows."""

    def __init__(self, folder: Path, options: Options, coder: LoadedCoder, x: Tensor) -> None:
        self._folder = folder
        (folder / "coder").mkdir()
        FORMATS["saelens"].write(ImportedCoder(coder.wired, {"model": options.model}), folder / "coder")
        save_file({"x": x.cpu()}, folder / "rows.safetensors")
        quiet = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self._process = subprocess.Popen(
            [str(options.peers), str(_SAELENS_SCRIPT), str(folder), str(torch.get_num_threads())],
            env=quiet | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about: Mapping[str, Any] = json.loads(self._line())

    def seconds(self, verb: str) -> float:
        """The seconds that one `encode` or `decode` of SAELens took."""
        assert self._process.stdin is not None
        self._process.stdin.write(verb + "\n")
        self._process.stdin.flush()
        return float(self._line())

    def reconstruction(self) -> Tensor:
        """[B, D] SAELens' reconstruction of the rows; ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait():
            raise UserError("the SAELens process failed: its error is printed above; check --peers")
        return load_file(self._folder / "theirs.safetensors")["y_hat"]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError("the SAELens process failed: its error is printed above; check --peers")
        return line


def _coder(
    options: Options, architecture: str, d: int, width: int, site: Site, kernels: KernelsName = "auto"
) -> LoadedCoder:
    """A coder with random weights; on normal rows JumpReLU's threshold leaves about as many latents active as TopK."""
    fields: Line = {"d_in": d, "d_out": d, "width": width, "sparsity": options.active}
    if architecture == "jumprelu":
        fields["threshold_init"] = float(torch.special.ndtri(torch.tensor(1 - options.active / width)))
    coder = coders.build(coders.config_type(architecture).read(fields, "the coder"))
    coder.initialise(torch.Generator().manual_seed(site.layer))
    wiring = Wiring(wiring="sae", reads=(site,), predicts=(site,))
    return LoadedCoder(str(site), WiredCoder(wiring, coder), kernels=kernels).to(options.device)


def _forward(lm: LanguageModel, ids: Tensor) -> Tensor:
    return lm.model(input_ids=ids, use_cache=False).logits


def _attached(lm: LanguageModel, ids: Tensor, made: list[LoadedCoder], *, spliced: bool) -> Tensor:
    with attach(lm, made, splice=spliced):
        return _forward(lm, ids)


def _hooked(lm: LanguageModel, ids: Tensor, made: list[LoadedCoder], *, spliced: bool) -> Tensor:
    """The logits of a pass with the coders' arithmetic in bare PyTorch hooks, one for each coder."""
    kept: list[Latents] = []

    def visit(coder: LoadedCoder, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        kept.append(codes := coder.encode(x))
        if not spliced:
            return None
        y_hat = coder.decode(codes, x)
        return (y_hat, *output[1:]) if isinstance(output, tuple) else y_hat

    handles = [
        lm.site_resolver.blocks[coder.wiring.reads[0].layer].register_forward_hook(
            lambda _module, _inputs, output, coder=coder: visit(coder, output)
        )
        for coder in made
    ]
    logits = _forward(lm, ids)
    for handle in handles:
        handle.remove()
    return logits


def _in_turns(work: Mapping[str, Callable[[], object]], options: Options, repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat, without a first one that warms up; a function that returns a float has timed itself."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, do in work.items():
            _wait(options)
            began = time.perf_counter()
            result = do()
            _wait(options)
            took = result if isinstance(result, float) else time.perf_counter() - began
            if repeat:
                seconds[name].append(took)
    return seconds


def _wait(options: Options) -> None:
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()


def _median(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)


def _check_equal(theirs: Tensor, ours: Tensor) -> None:
    apart = float((theirs - ours.cpu()).norm() / ours.norm().cpu())
    if not apart <= _MAX_DIFFERENCE:
        raise UserError(
            f"SAELens' reconstruction differs from Panscope's by {apart:.1e} of its size, more than "
            f"{_MAX_DIFFERENCE:g}: they do not compute the same coder"
        )


def table(lines: list[Line]) -> Table:
    """A row for each timing."""
    shown = markdown_table(("what", "of", "ms", "added to the pass"))
    for line in lines:
        if "added_share" in line:
            of = (
                f"{line['coders']} coders, F = {line['width']:,}, {line['tokens']} tokens ({line['forward_ms']:.1f} ms)"
            )
            shown.add_row(line["what"], of, f"{line['attached_ms']:.1f}", f"{line['added_share']:.1%}")
        else:
            of = f"{line['architecture']}, F = {line['width']:,}, L0 {line['l0']:.0f}, {line['rows']} rows"
            shown.add_row(line["what"], of, f"{line['ms']:.1f}", "")
    return shown


if __name__ == "__main__":
    run_command(main, Options)
