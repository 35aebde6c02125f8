"""A tiny language model with random weights, texts for it, suite files, and what a command did."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

VOCABULARY, CONTEXT = 40, 24
CALIBRATION_ROWS = 640
"""In place of 32,768: with batches of 64 rows that alone would take longer than all the rest."""


def save_model(folder: Path, *, spoilt: bool, d_model: int = 16) -> None:
    """Two Llama blocks, 16 wide or as asked; where `spoilt`, one weight of the last block's MLP is NaN."""
    torch.manual_seed(7)
    sizes = {"hidden_size": d_model, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    fields: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, **sizes, **special}
    config = transformers.LlamaConfig(num_key_value_heads=2, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    if spoilt:
        with torch.no_grad():
            model.get_submodule("model.layers.1.mlp.down_proj").weight[3, 5] = torch.nan  # pyright: ignore
    model.save_pretrained(folder)
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))])}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def write_text(path: Path, documents: int, seed: int) -> list[int]:
    """Documents of 5 to 29 random words; returns their lengths."""
    draw = random.Random(seed)
    lengths = [draw.randrange(5, 30) for _ in range(documents)]
    texts = [" ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(length)) for length in lengths]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return lengths


@dataclass(frozen=True)
class Tiny:
    """Where the model and the text are; none of it is ever changed."""

    model: Path
    spoilt_model: Path
    text: Path

    def suite(self, path: Path, *tables: dict, **fields: object) -> Path:
        """Write a suite file: two coders of 40 steps unless said otherwise."""
        merged: dict = {"tokens": 2560, "model": {"path": str(self.model)}, "activations": {"norm_rows": 500}}
        merged |= {"data": {"text": [str(self.text)], "held_out": 0.2}, "eval": {"tokens": 300}}
        merged |= {"train": {"batch": 64, "log_every": 5, "checkpoint_every": 10}}
        merged["coders"] = list(tables or [{"width": 32, "sparsity": 4}])
        for name, value in fields.items():
            merged[name] = merged.get(name, {}) | value if isinstance(value, dict) else value
        path.write_text(tomli_w.dumps(merged))
        return path


@dataclass(frozen=True)
class Call:
    """What a command did."""

    status: int
    out: str
    err: str

    def sentence(self) -> str:
        """The one sentence of a mistake, in one line."""
        assert self.status == 2, (self.status, self.out, self.err)
        assert "Traceback" not in self.err
        text = " ".join(self.err.split())
        assert text.startswith("Error: ")
        assert text.count("Error: ") == 1
        return text.removeprefix("Error: ")


Command = Callable[..., Call]
