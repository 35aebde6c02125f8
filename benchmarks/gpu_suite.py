"""The headline: every SAE of Gemma Scope's 2B 16K row at once on one GPU, the language model's passes included.

`python -m benchmarks.gpu_suite --out FILE.jsonl` builds Gemma 2 2B with random weights (the shapes are what costs),
runs it on random tokens, and trains 78 SAEs of width 16,384 (26 layers x attn_z, mlp_out, resid_post) on the rows: TopK
with K = 100, so that the number of active latents is that of the paper's middle sparsity from the first step.
Everything is Panscope's own: live activations, bucket shuffle, trainees. One JSON line: tokens a second, milliseconds a
step, peak memory, and the machine.

Shape letters: N sequences, T tokens a sequence, B rows of a step.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from benchmarks import machine
from panscope import coders
from panscope.activations.live import LiveActivations
from panscope.activations.shuffle import BucketShuffle
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import Wiring
from panscope.kernels.backend import Kernels
from panscope.kernels.choose import sparse_kernels
from panscope.lms.model import LanguageModel
from panscope.train.coder_trainer import CoderTrainer
from panscope.train.schedule import TrainingConfig
from panscope.train.shared import SharedBatch
from panscope.types import Site, TokenBatch

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
    """[N, T] random ids, endlessly; every token is text."""

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
        """Nothing: it is never resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def language_model(fields: dict[str, Any], device: torch.device) -> LanguageModel:
    """A Gemma 2 of these shapes with random weights, in bfloat16."""
    torch.manual_seed(0)
    with device:
        config = transformers.Gemma2Config(**fields)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    tokenizer: Any = SimpleNamespace(bos_token_id=2, eos_token_id=1, pad_token_id=0, all_special_ids=[0, 1, 2, 3])
    return LanguageModel(model, tokenizer)


def trainer(site: Site, d: int, scale: float, device: torch.device, kernels: Kernels) -> CoderTrainer:
    """One TopK coder of the headline's width with a unit decoder, as `gemma_scope`'s otherwise."""
    config = coders.config_type("topk").read(
        {"architecture": "topk", "d_in": d, "d_out": d, "width": WIDTH, "sparsity": K, "pre_encoder_bias": True},
        "gpu_suite",
    )
    coder = coders.build(config).initialise(torch.Generator().manual_seed(site.layer)).to(device)
    wiring = Wiring.model_validate({"wiring": "sae", "reads": (site,), "predicts": (site,)})
    training = TrainingConfig.read({"normaliser": "unit_rms", "learning_rate": 7e-5, "adam_betas": (0.0, 0.999)}, "it")
    scales = Normaliser(kind="unit_rms", scale_in=scale, scale_out=scale)
    return CoderTrainer(str(site), coder, wiring, scales, training, steps=1_000_000, kernels=kernels)


def measure(steps: int, device: torch.device, kernels: Kernels) -> dict[str, Any]:
    """Train `steps` steps after as many of warming up; rates over whole buckets, so that all passes are counted."""
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


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu_suite needs a GPU that torch can use; this machine has none")
    device = torch.device("cuda")
    found = sparse_kernels(device)
    if found.kernels is None:
        sys.exit(f"benchmarks.gpu_suite needs the sparse kernels, but {found.detail}")
    line = json.dumps({"benchmark": "gpu_suite"} | measure(arguments.steps, device, found.kernels) | machine.facts())
    sys.stdout.write(line + "\n")
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
