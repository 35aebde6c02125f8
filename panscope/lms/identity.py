"""What a language model computes: its weights, its configuration and its tokenizer.

Coders only mean something on the activations of the model that they were trained on. A path or a hub id does not say
which model that is, since its files can be replaced; the identity does, and it says what differs.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
import xxhash
from safetensors import safe_open
from torch import Tensor

from panscope.config import Config
from panscope.storage.atomic import checksum
from panscope.storage.file_version import FileVersion
from panscope.storage.user_cache import cached_checksum

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them."""
_WITHOUT_EFFECT = {
    *("architectures", "transformers_version", "transformers_weights", "dtype", "torch_dtype", "problem_type"),
    *("use_cache", "return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward"),
    *("torchscript", "gradient_checkpointing", "id2label", "label2id", "initializer_range"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
"""Fields of a configuration that change no activation; token ids are part of the tokenizer's checksum."""
_NAMED = 3
"""Fields of a configuration that a sentence names."""


class ModelIdentity(Config):
    """Checksums of all that determines a model's activations for a text; equal for two copies of one model.

    Not part of it: the dtype, device and attention implementation that the model is run with.
    """

    weights: str
    """xxh3 of every tensor's name, dtype, shape and bytes, as stored; independent of the division into files."""
    configuration: dict[str, Any]
    """The fields of the model's configuration that change what it computes, by dotted name."""
    tokenizer: str
    """xxh3 of vocabulary, merges, normaliser, pre-tokeniser, added tokens and special ids."""
    transformers: str
    """The release that read configuration and tokenizer; another one may know other fields."""

    def summary(self) -> dict[str, str]:
        """A checksum for each part."""
        fields = json.dumps(self.configuration, sort_keys=True).encode()
        configuration = xxhash.xxh3_64_hexdigest(fields)
        return {"weights": self.weights, "configuration": configuration, "tokenizer": self.tokenizer}

    def differences(self, now: "ModelIdentity") -> tuple[str, ...]:
        """A phrase for each part in which the model `now` differs; none for the same model."""
        found = []
        if self.weights != now.weights:
            found.append(f"its weights differ (xxh3 {self.weights}, now {now.weights})")
        if fields := self._changed_fields(now):
            more = f" and {len(fields) - _NAMED} more" if len(fields) > _NAMED else ""
            found.append(f"its configuration differs ({', '.join(fields[:_NAMED])}{more})")
        if self.tokenizer != now.tokenizer:
            found.append(f"its tokenizer differs (xxh3 {self.tokenizer}, now {now.tokenizer}{self._releases(now)})")
        return tuple(found)

    def _changed_fields(self, now: "ModelIdentity") -> list[str]:
        """The fields that differ; those that only one of two releases of transformers knows are left out."""
        before, after = self.configuration, now.configuration
        known = before.keys() | after.keys() if self.transformers == now.transformers else before.keys() & after.keys()
        return [
            f"{name} {before.get(name)!r}, now {after.get(name)!r}"
            for name in sorted(known)
            if before.get(name) != after.get(name)
        ]

    def _releases(self, now: "ModelIdentity") -> str:
        if self.transformers == now.transformers:
            return ""
        return f", read by transformers {self.transformers} and now by {now.transformers}"


def weight_files(source: str, revision: str | None, named: str | None = None) -> tuple[Path, ...]:
    """The files on this machine that transformers loads the weights of a folder or hub id from.

    `named` is the file that the model's configuration names, if any. Empty if the weights are in none of the usual
    files.
    """
    for name in _WEIGHT_FILES if named is None else (named,):
        file = _local_file(source, name, revision)
        if file is not None:
            return _shards(file) if name.endswith(".index.json") else (file,)
    return ()


def _local_file(source: str, name: str, revision: str | None) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = huggingface_hub.try_to_load_from_cache(source, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _shards(index: Path) -> tuple[Path, ...]:
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return tuple(index.parent / name for name in sorted(names))


def checksum_of_files(files: Iterable[Path]) -> str:
    """The checksum of all weights in these files, cached by their versions.

    That of safetensors files depends on the tensors alone; of other files, which are not opened, on their bytes.
    """
    paths = tuple(files)
    versions = [FileVersion.of(path) for path in paths]
    return cached_checksum("weights", versions, lambda: _of_paths(paths))


def _of_paths(paths: tuple[Path, ...]) -> str:
    if any(path.suffix != ".safetensors" for path in paths):
        return xxhash.xxh3_64_hexdigest("".join(map(checksum, paths)).encode())
    opened = [safe_open(path, framework="pt") for path in paths]
    places = sorted((name, number) for number, file in enumerate(opened) for name in file.keys())  # noqa: SIM118
    return _checksum((name, opened[number].get_tensor(name)) for name, number in places)


def checksum_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The checksum of weights in memory, by name; not that of their files if they were renamed or cast when loaded."""
    return _checksum(sorted(tensors.items()))


def _checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = xxhash.xxh3_64()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def configuration_of(config: "transformers.PretrainedConfig") -> dict[str, Any]:
    """The fields of a loaded configuration that change what the model computes, by dotted name."""
    return dict(_fields(json.loads(config.to_json_string(use_diff=False)), ""))


def _fields(table: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in table.items():
        if name in _WITHOUT_EFFECT or name.startswith("_"):
            continue
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
