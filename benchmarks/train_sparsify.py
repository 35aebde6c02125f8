"""sparsify's side of `train_vs_sparsify`: its `Trainer.fit`, as it is, on a CPU.

Run as `python -m benchmarks.train_sparsify TASK`, it prints the windows as JSON. Its own command line loads the model
to `cuda:0` whatever there is, so its `Trainer` is given the model, loaded as that command line does it (`AutoModel`: no
language-model head) but on the CPU, and a `datasets.Dataset` of `input_ids`. Nothing else of it is changed.

The hookpoints are the modules whose outputs are Panscope's sites: layers.N for resid_post, layers.N.self_attn.o_proj
for attn_out, layers.N.mlp for mlp_out, as Llama-type models name them. layers.N.self_attn gives the same rows, but
there sparsify's hook fails: it reads a positional argument, and transformers calls that module with none. The tokens
are Panscope's own stream; BOS, EOS and other special tokens are left out of training, as Panscope does, by
`exclude_tokens`. A step begins where the model is called, which is where time is taken.
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import tempfile
import time

import sparsify
import torch
from datasets import Dataset
from rich.console import Console
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from transformers import AutoModel

from benchmarks.train_task import RATE, Task, Window, windows_between
from panscope.data.documents import DataConfig, open_documents
from panscope.data.tokens import TokenStream
from panscope.lms.load import LanguageModelConfig, load

VERSION = sparsify.__version__
HOOKPOINTS = ("layers.{}", "layers.{}.self_attn.o_proj", "layers.{}.mlp")


def run(task: Task, save_dir: str) -> list[Window]:
    """Train; the windows."""
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
    return windows_between(begun, _learned(sequences, special, task.sequences), task.window)


def _tokens(task: Task) -> tuple[torch.Tensor, list[int]]:
    """[N, T] of one batch more than the steps, since a step ends where the next begins; and the special tokens."""
    lm = load(LanguageModelConfig(path=task.model, device="cpu"))
    data = DataConfig(text=task.text, packing="stream", context=task.context)
    stream = TokenStream(open_documents(data), lm.tokenizer, data, part="training", seed=0, epochs=None)
    wanted = (task.steps + 1) * task.sequences
    batches = itertools.islice(stream, -(-wanted // data.sequences))
    ids = {lm.tokenizer.bos_id, lm.tokenizer.eos_id} | lm.tokenizer.special_ids
    return torch.cat([batch.token_ids for batch in batches])[:wanted], sorted(i for i in ids if i is not None)


def _learned(sequences: torch.Tensor, special: list[int], of_a_batch: int) -> list[int]:
    """How many tokens of sequences [N, T] each batch is learned from."""
    wanted = torch.isin(sequences, torch.tensor(special, dtype=torch.int64), invert=True)
    return [int(batch.sum()) for batch in wanted.split(of_a_batch)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(sys.stderr):
        found = run(Task.read(sys.argv[1]), place)
    Console(width=100_000).print(json.dumps([dataclasses.asdict(window) for window in found]), highlight=False)
