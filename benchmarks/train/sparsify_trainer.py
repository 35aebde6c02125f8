"""The speed of sparsify's own `Trainer.fit` on the task of `benchmarks.train.vs_sparsify`, which runs this module.

    python -m benchmarks.train.sparsify_trainer TASK

prints the windows as JSON. sparsify's command line always loads the model to `cuda:0`, so its `Trainer` is called here
with the model loaded in the same way (`AutoModel`: no language-model head) but on the CPU, and with a
`datasets.Dataset` of `input_ids`. Nothing else is changed.

The hookpoints are the modules whose outputs are Panscope's sites: layers.N for resid_post, layers.N.self_attn.o_proj
for attn_out, layers.N.mlp for mlp_out, as Llama-type models name them. layers.N.self_attn has the same output, but
sparsify's hook fails there: it reads a positional argument, and transformers passes none to that module. The tokens are
those of Panscope's own stream; as in Panscope, BOS, EOS and other special tokens are not trained on (`exclude_tokens`).
A step is timed from one call of the model to the next.
"""

import contextlib
import dataclasses
import itertools
import sys
import tempfile
import time
from dataclasses import dataclass

import torch
import tyro
from datasets import Dataset
from sparsify import SparseCoderConfig, TrainConfig, Trainer  # pyright: ignore[reportMissingImports]
from transformers import AutoModel

from benchmarks.support.command_line import run_command
from benchmarks.support.processes import print_json
from benchmarks.train.task import RATE, Task, Window, windows_between
from panscope.data.documents import DataConfig, open_documents
from panscope.data.tokens import TokenStream
from panscope.lms.load import LanguageModelConfig, load

HOOKPOINTS = ("layers.{}", "layers.{}.self_attn.o_proj", "layers.{}.mlp")


@dataclass(frozen=True)
class Options:
    """The speed of sparsify's trainer on one task."""

    task: tyro.conf.Positional[str]
    """The task as JSON, as `Task.written` gives it."""


def main(options: Options) -> None:
    """Train in a temporary folder and print the windows; what sparsify prints goes to standard error."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        found = run(Task.read(options.task), folder)
    print_json([dataclasses.asdict(window) for window in found])


def run(task: Task, save_dir: str) -> list[Window]:
    """Train with `save_dir` for sparsify's files, and return the windows."""
    sequences, special = _tokens(task)
    model = AutoModel.from_pretrained(task.model, dtype=torch.float32)
    layers = range(model.config.num_hidden_layers)
    config = TrainConfig(
        SparseCoderConfig(num_latents=task.width, k=task.k),
        batch_size=task.sequences,
        optimizer="adam",
        lr=RATE,
        hookpoints=[point.format(layer) for layer in layers for point in HOOKPOINTS],
        exclude_tokens=special,
        log_to_wandb=False,
        save_dir=save_dir,
    )
    dataset = Dataset.from_dict({"input_ids": sequences.tolist()}).with_format("torch")
    trainer = Trainer(config, dataset, model)
    assert len(trainer.saes) == len(HOOKPOINTS) * len(layers), "a hookpoint is missing: is this a Llama-type model?"
    begun: list[float] = []
    model.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
    trainer.fit()
    return windows_between(begun, _trained_tokens(sequences, special, task.sequences), task.window)


def _tokens(task: Task) -> tuple[torch.Tensor, list[int]]:
    """Token ids [N, T] of one batch more than there are steps, as a step ends where the next begins; special tokens."""
    lm = load(LanguageModelConfig(path=task.model, device="cpu"))
    data = DataConfig(text=task.text, packing="stream", context=task.context)
    stream = TokenStream(open_documents(data), lm.tokenizer, data, part="training", seed=0, epochs=None)
    wanted = (task.steps + 1) * task.sequences
    batches = itertools.islice(stream, -(-wanted // data.sequences))
    ids = {lm.tokenizer.bos_id, lm.tokenizer.eos_id} | lm.tokenizer.special_ids
    return torch.cat([batch.token_ids for batch in batches])[:wanted], sorted(i for i in ids if i is not None)


def _trained_tokens(sequences: torch.Tensor, special: list[int], of_a_batch: int) -> list[int]:
    """The number of tokens that each batch of the sequences [N, T] is trained on."""
    wanted = torch.isin(sequences, torch.tensor(special, dtype=torch.int64), invert=True)
    return [int(batch.sum()) for batch in wanted.split(of_a_batch)]


if __name__ == "__main__":
    run_command(main, Options)
