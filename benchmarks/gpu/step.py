"""The cost of a training step on one GPU, part by part, against the GPU's measured matrix product and memory copy.

    python -m benchmarks.gpu.step --out FILE.jsonl

measures the rates of the half-precision product and the copy on this GPU, then steps of TopK and of a JumpReLU-like
coder (about as many active latents, by a threshold) at the shapes of Gemma Scope's 9B 131K and 2B 16K rows. Each gives
one line of JSON: milliseconds of every part (medians over steps that run back to back, by CUDA events), the least time
that they could take at those rates, and the model FLOP utilisation, dense-equivalent (10 B D F) and actual.

Rows and weights are random; biases vary so that some latents are active far more often than others.

Shape letters: B rows, D input and output width, F latents, N active places of a batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.processes import print_json
from panscope.kernels.backend import AdamStep, Contribution, Entries, Finish, Gradient, InputRows
from panscope.kernels.triton import TritonKernels
from panscope.storage.json_lines import JsonLines
from panscope.types import UserError

Mark = Callable[[str], None]
"""Called with the name of a part when that part has been launched."""
WARMING_UP = 5
BATCHES = 4
"""Different batches, used in turn."""
_MATRIX = 8192
"""Rows and columns of the product whose rate is measured."""
_COPIED = 1 << 30
"""Numbers that are copied, 4 bytes each."""


@dataclass(frozen=True)
class Shape:
    """The shape of a training step."""

    rows: int
    """B."""
    d: int
    """D."""
    width: int
    """F."""
    active: int
    """Active latents of a row: K, or approximately with a threshold."""


SHAPES = (Shape(4096, 3584, 131_072, 100), Shape(4096, 2304, 16_384, 100))


class Step:
    """A coder with unit-norm decoder rows and a pre-encoder bias, and the state of its optimiser."""

    def __init__(self, shape: Shape, selection: str, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self.shape, self.selection, self.kernels, self.steps = shape, selection, TritonKernels(), 0

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device)

        self.x = torch.nn.functional.normalize(random(BATCHES, shape.rows, shape.d), dim=2)
        self.W_dec = torch.nn.functional.normalize(random(shape.width, shape.d), dim=1)
        self.W_enc = self.W_dec.clone()
        self.b_enc, self.b_dec = random(shape.width) * 0.5 * shape.d**-0.5, torch.zeros(shape.d, device=device)
        self.for_enc = torch.zeros_like(self.W_enc), torch.zeros_like(self.W_enc)
        self.for_dec = torch.zeros_like(self.W_dec), torch.zeros_like(self.W_dec)
        self.biases = torch.optim.Adam([self.b_enc, self.b_dec], lr=1e-4, fused=device.type == "cuda")
        self.screen = self.kernels.screen(self.W_enc)
        self.weights = torch.full((shape.rows,), 1 / shape.rows, device=device)
        self.scale, self.ok = torch.ones((), device=device), torch.ones((), dtype=torch.bool, device=device)
        self.floor = self._floor() if selection == "above" else None
        self.entries = 0
        self.gradients = Gradient(), Gradient()
        self.loss = self.scale

    def _floor(self) -> Tensor:
        """[F] the same threshold for every latent, by which about as many are active as the shape asks for."""
        x = self.x[0, :256]
        best = (x @ self.W_enc.T + self.b_enc).flatten().topk(len(x) * self.shape.active, sorted=False).values
        return best.min().expand(self.shape.width).contiguous()

    def learn(self, mark: Mark) -> None:
        """One training step."""
        x, kernels = self.x[self.steps % BATCHES], self.kernels
        self.steps += 1
        rows = kernels.rows(x, self.b_dec)
        mark("rows")
        codes = self._codes(rows)
        mark(self.selection)
        found = kernels.reconstruct(codes, self.W_dec, self.b_dec, x, self.weights, (self.shape.width,))
        self.loss, self.entries = found.loss, len(codes.values)
        mark("reconstruct")
        grouped = kernels.group(codes.latents, self.shape.width)
        mark("group")
        slopes, of_row = found.slopes * (codes.values > 0), self._of_row(codes)
        encoder = Gradient(Contribution(slopes, rows.x, of_row, grouped))
        decoder = Gradient(Contribution(codes.values, found.pull, of_row, grouped))
        self.gradients = encoder, decoder
        by_latent = torch.zeros_like(self.b_enc).index_add_(0, codes.latents, slopes)
        self.b_enc.grad, self.b_dec.grad = by_latent, found.pull.sum(dim=0) - by_latent @ self.W_enc
        self.biases.step()
        mark("biases")
        adam = AdamStep(1e-4, 0.9, 0.999, 1e-8, self.steps, self.scale, self.ok)
        kernels.update(self.W_enc, *self.for_enc, encoder, adam, Finish(screen=self.screen))
        mark("update encoder")
        kernels.update(self.W_dec, *self.for_dec, decoder, adam, Finish(project=True, unit=True))
        mark("update decoder")

    def measure_norms(self, mark: Mark) -> None:
        """The norms of the last step's gradients, which clipping needs; not a part of `learn`."""
        encoder, decoder = self.gradients
        self.kernels.squared_norm(self.W_enc, encoder, False)
        mark("norm encoder")
        self.kernels.squared_norm(self.W_dec, decoder, True)
        mark("norm decoder")

    def _codes(self, rows: InputRows) -> Entries:
        count, k = self.shape.rows, self.shape.active
        if self.floor is None:
            pre, latents = self.kernels.topk(rows, self.W_enc, self.b_enc, self.screen, k, None)
            starts = torch.arange(0, count * k + 1, k, device=pre.device)
            return Entries(pre.flatten(), latents.flatten(), starts)
        capacity = count * self.shape.width // 4
        found = self.kernels.above(rows, self.W_enc, self.b_enc, self.screen, self.floor, capacity)
        assert found is not None, "the threshold leaves more latents active than there is room for"
        return found

    def _of_row(self, codes: Entries) -> Tensor:
        every = torch.arange(self.shape.rows, device=codes.starts.device)
        return every.repeat_interleave(codes.starts.diff(), output_size=len(codes.values))


def timed(run: Callable[[Mark], object], steps: int) -> dict[str, float]:
    """Median milliseconds of each part that `run` marks and of all of it ("step"); steps run back to back."""
    records: list[list[tuple[str, torch.cuda.Event]]] = []

    def mark(name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        records[-1].append((name, event))

    for _ in range(WARMING_UP + steps):
        records.append([])
        mark("")
        run(mark)
    torch.cuda.synchronize()
    times: dict[str, list[float]] = {}
    for marks in records[WARMING_UP:]:
        for (_, before), (name, after) in pairwise(marks):
            times.setdefault(name, []).append(before.elapsed_time(after))
        times.setdefault("step", []).append(marks[0][1].elapsed_time(marks[-1][1]))
    return {name: round(median(found), 4) for name, found in times.items()}


def ceilings(device: torch.device, steps: int) -> dict[str, float]:
    """TFLOP/s of a large square product in both half precisions, and GB/s read and written by a large copy.

    Of random numbers. The kernels' screen is a float16 product.
    """
    source = torch.rand(_COPIED, device=device)
    target = torch.empty_like(source)
    factors = {
        name: [torch.randn(_MATRIX, _MATRIX, device=device).to(dtype) for _ in range(3)]
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
    }

    def everything(mark: Mark) -> None:
        for name, (left, right, out) in factors.items():
            torch.mm(left, right.T, out=out)
            mark(name)
        target.copy_(source)
        mark("copy")

    ms = timed(everything, steps)
    products = {f"tflops_{name}": 2 * _MATRIX**3 / ms[name] / 1e9 for name in factors}
    return products | {"gb_per_s": 8 * _COPIED / ms["copy"] / 1e6}


def least(shape: Shape, entries: int, best: dict[str, float]) -> dict[str, float]:
    """The least milliseconds of parts at the rates `best`, by the product's FLOP and the bytes of weights and moments.

    Active rows are counted once for each pass that gathers them, as if none of them came from a cache.
    """
    weights, gathered = shape.width * shape.d, 4 * entries * shape.d
    work = {
        "rows": 10 * shape.rows * shape.d,
        "rescored": gathered,
        "reconstruct": gathered,
        "update encoder": 26 * weights + gathered,
        "update decoder": 24 * weights + gathered,
    }
    floors = {name: size / best["gb_per_s"] / 1e6 for name, size in work.items()}
    product = 2 * shape.rows * weights / best["tflops_float16"] / 1e9
    return {name: round(ms, 4) for name, ms in ({"product": product} | floors).items()}


def utilisation(shape: Shape, entries: int, ms: float, best: dict[str, float]) -> dict[str, float]:
    """TFLOP/s and shares of the product's rate, as if the step were dense (10 B D F), and by what it computes."""
    product = 2 * shape.rows * shape.d * shape.width
    flops = {"dense_equivalent": 5 * product, "actual": product + 10 * entries * shape.d}
    rates = {name: count / ms / 1e9 for name, count in flops.items()}
    shares = {f"mfu_{name}": round(rate / best["tflops_float16"], 4) for name, rate in rates.items()}
    return {f"tflops_{name}": round(rate, 1) for name, rate in rates.items()} | shares


def lines(device: torch.device, steps: int) -> Iterator[dict[str, Any]]:
    """The measured rates of the GPU, then every shape and selection."""
    best = ceilings(device, steps)
    yield {"case": "ceilings"} | {name: round(value, 1) for name, value in best.items()}
    for shape in SHAPES:
        for selection in ("topk", "above"):
            torch.cuda.reset_peak_memory_stats()
            step = Step(shape, selection, device)
            before = torch.cuda.memory_allocated()
            ms = timed(step.learn, steps)
            clipping = timed(step.measure_norms, steps)
            yield {
                "case": selection,
                **asdict(shape),
                "l0": round(step.entries / shape.rows, 2),
                "steps": steps,
                "ms": ms,
                "ms_if_clipped": {name: found for name, found in clipping.items() if name != "step"},
                "least_ms": least(shape, step.entries, best),
                **utilisation(shape, step.entries, ms["step"], best),
                "gib_beside_weights": round((torch.cuda.max_memory_allocated() - before) / 2**30, 3),
                "loss": step.loss.item(),
            }
            del step


@dataclass(frozen=True)
class Options:
    """The cost of a training step on one GPU, part by part."""

    steps: int = 30
    """Steps that are timed, for each shape and selection."""
    out: Path | None = None
    """Results are appended to this file as well as printed."""


def main(options: Options) -> None:
    """Measure, print and record."""
    if not torch.cuda.is_available():
        raise UserError("benchmarks.gpu.step needs a GPU that torch can use; this machine has none")
    about = machine.facts() | {"triton": triton.__version__}
    for found in lines(torch.device("cuda"), options.steps):
        line = {"benchmark": "gpu_step"} | found | about
        print_json(line)
        if options.out is not None:
            JsonLines(options.out).append([line])


if __name__ == "__main__":
    run_command(main, Options)
