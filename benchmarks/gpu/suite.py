"""The speed of training every SAE of Gemma Scope's 2B 16K row together on one GPU, language model included.

    python -m benchmarks.gpu.suite --out FILE.jsonl

builds Gemma 2 2B with random weights, as the cost depends only on the shapes, runs it on random tokens, and trains 78
SAEs of width 16,384 (26 layers x attn_z, mlp_out, resid_post) on its activations: TopK with K = 100, the paper's middle
sparsity, from the first step on. Activations, shuffling and training are Panscope's own; the speed is compared with
nothing else. The result is one line of JSON: tokens a second, milliseconds a step, peak memory, and the machine.

Shape letters: N sequences, T tokens a sequence, B rows of a step.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.processes import print_json
from panscope import coders
from panscope.activations.live import LiveActivations
from panscope.activations.shuffle import BucketShuffle
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import Wiring
from panscope.kernels.backend import Kernels
from panscope.kernels.choose import sparse_kernels
from panscope.lms.model import LanguageModel
from panscope.storage.json_lines import JsonLines
from panscope.training.coder_trainer import CoderTrainer, StepBackend
from panscope.training.schedule import TrainingConfig
from panscope.training.shared import SharedBatch
from panscope.types import Site, TokenBatch, UserError

KINDS = ("attn_z", "mlp_out", "resid_post")
WIDTH, K, BATCH, SEQUENCES, CONTEXT = 16_384, 100, 4096, 16, 1024
GEMMA_2_2B: dict[str, Any] = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "vocab_size": 256_000,
    "max_position_embeddings": 8192,
}
"""The shapes of google/gemma-2-2b's config.json."""


class RandomTokens:
    """An endless stream of batches [N, T] of random token ids, all of them content."""

    def __init__(self, vocabulary: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._vocabulary = vocabulary

    def __iter__(self) -> Iterator[TokenBatch]:
        return self

    def __next__(self) -> TokenBatch:
        ids = torch.randint(10, self._vocabulary, (SEQUENCES, CONTEXT), generator=self._generator)
        every = torch.ones_like(ids, dtype=torch.bool)
        positions = torch.arange(CONTEXT).expand_as(ids)
        return TokenBatch(ids, every, every, torch.zeros_like(ids), positions)

    def state_dict(self) -> dict[str, Any]:
        """Nothing, as the benchmark is never resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def language_model(fields: dict[str, Any], device: torch.device) -> LanguageModel:
    """A Gemma 2 model with these configuration fields and random weights, in bfloat16."""
    torch.manual_seed(0)
    with device:
        config = transformers.Gemma2Config(**fields)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    tokenizer: Any = SimpleNamespace(bos_token_id=2, eos_token_id=1, pad_token_id=0, all_special_ids=[0, 1, 2, 3])
    return LanguageModel(model, tokenizer)


def trainer(site: Site, d: int, scale: float, device: torch.device, kernels: Kernels) -> CoderTrainer:
    """The trainer of one TopK coder of width F, with the training settings of the `gemma_scope` recipe."""
    config = coders.config_type("topk").read(
        {"architecture": "topk", "d_in": d, "d_out": d, "width": WIDTH, "sparsity": K, "pre_encoder_bias": True},
        "the benchmark",
    )
    coder = coders.build(config).initialise(torch.Generator().manual_seed(site.layer)).to(device)
    wiring = Wiring.model_validate({"wiring": "sae", "reads": (site,), "predicts": (site,)})
    training = TrainingConfig.read(
        {"normaliser": "unit_rms", "learning_rate": 7e-5, "adam_betas": (0.0, 0.999)}, "the benchmark"
    )
    scales = Normaliser(kind="unit_rms", scale_in=scale, scale_out=scale)
    return CoderTrainer(str(site), coder, wiring, scales, training, steps=1_000_000, backend=StepBackend(kernels))


def measure(steps: int, device: torch.device, kernels: Kernels) -> dict[str, Any]:
    """Train `steps` steps after as many that warm up, rounded up to whole buckets so that every pass is counted."""
    lm = language_model(GEMMA_2_2B, device)
    sites = [Site(layer, kind) for layer in range(lm.n_layers) for kind in KINDS]
    live = LiveActivations(lm, RandomTokens(lm.vocabulary), sites)
    first = next(live)
    scales = {site: float(rows.float().square().sum(dim=1).mean().rsqrt()) for site, rows in first.rows.items()}
    trainers = [trainer(site, lm.width(site), scales[site], device, kernels) for site in sites]
    source = BucketShuffle(live, rows=SEQUENCES * CONTEXT, batch=BATCH, seed=0)
    a_bucket = SEQUENCES * CONTEXT // BATCH
    steps = -(-steps // a_bucket) * a_bucket
    times = []
    for part in range(2):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for step in range(steps):
            shared = SharedBatch(next(source))
            for learner in trainers:
                learner.learn(shared, part * steps + step)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return {
        "coders": len(trainers),
        "width": WIDTH,
        "k": K,
        "batch": BATCH,
        "steps": steps,
        "ms_per_step": 1e3 * times[1] / steps,
        "tokens_per_second": steps * BATCH / times[1],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "loss_of_the_last": trainers[-1].read(2 * steps)["loss"],
    }


@dataclass(frozen=True)
class Options:
    """The speed of training Gemma Scope's 78 SAEs of its 2B 16K row together on one GPU."""

    steps: int = 16
    """Steps that are timed, after as many that warm up."""
    out: Path | None = None
    """The result is appended to this file as well as printed."""


def main(options: Options) -> None:
    """Measure, print and record."""
    if not torch.cuda.is_available():
        raise UserError("benchmarks.gpu.suite needs a GPU that torch can use; this machine has none")
    device = torch.device("cuda")
    found = sparse_kernels(device)
    if found.kernels is None:
        raise UserError(f"benchmarks.gpu.suite needs the sparse kernels, but {found.detail}")
    line = {"benchmark": "gpu_suite"} | measure(options.steps, device, found.kernels) | machine.facts()
    print_json(line)
    if options.out is not None:
        JsonLines(options.out).append([line])


if __name__ == "__main__":
    run_command(main, Options)
