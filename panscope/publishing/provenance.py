"""What files for others say of where a coder comes from: everything that matters, and no path of this machine.

Used for exported and published coders. A path of this machine tells others nothing and may tell too much, so of every
one only the last part is kept.
"""

import functools
import os
import re
from pathlib import Path
from typing import Any

import panscope
from panscope.formats.base import ImportedCoder
from panscope.formats.untrusted import read_json
from panscope.lms.load import LanguageModelConfig, load_tokenizer, locate
from panscope.runs.finished_coder import HELD_OUT, FinishedCoder
from panscope.types import UserError

_LOCAL = re.compile(
    r"(~|\.{1,2}|[A-Za-z]:)?[\\/].*|file://.*|[^:]*[\\/][^:\\/]*\.(txt|jsonl|parquet)(\.\w+)?", re.DOTALL
)
"""Rooted, relative with dots, or, wherever it is read, relative with a text file's suffix: a hub dataset has none."""
_ADDRESS = re.compile(r"(\w+)://[^/]*@")


def redact_paths(value: Any) -> Any:
    """`value` with only the last part of every string that is a path of this machine, and no password in an address."""
    if isinstance(value, dict):
        return _redact_table(value)
    if isinstance(value, list | tuple):
        return [redact_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if _LOCAL.fullmatch(value) or os.path.exists(value):
        return re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return _ADDRESS.sub(r"\1://", value)


def _redact_table(table: dict[str, Any]) -> dict[str, Any]:
    """Its names too, as subsets of a text are named by its files; files of one name are numbered."""
    made: dict[str, Any] = {}
    for name, item in table.items():
        short, number = redact_paths(name), 2
        while short in made:
            short, number = f"{redact_paths(name)} ({number})", number + 1
        made[short] = redact_paths(item)
    return made


def load_for_export(coder: FinishedCoder, label: str | None = None) -> ImportedCoder:
    """One of our coder folders as it goes to others: on raw activations, and what there is to say of it.

    Its L0 is that of the evaluation `label`; of the usual one where none is named, and left out where none is usual.
    """
    wired, config = coder.load(), coder.config
    model, origin = config.get("model") or {}, config.get("origin") or {}
    path = model.get("path")
    about: dict[str, Any] = {
        **origin,
        "format": "panscope",
        "source": None,
        "revision": None,
        "version": panscope.__version__,
        "name": config.get("name", coder.name),
        "model": path,
        "model_type": model_type(path),
        "model_revision": model.get("revision"),
        "model_weights": None if coder.identity is None else coder.identity.model.weights,
        "tokens": config.get("tokens"),
        "trained_as": config["training"]["coder"]["architecture"],
        "normaliser_folded": config.get("normaliser") if wired.normaliser.kind == "none" else None,
        "origin": {name: origin[name] for name in ("format", "source", "revision") if name in origin} or None,
        **_text(coder, model),
        "l0": _l0(coder, label),
    }
    return ImportedCoder(wired, {name: value for name, value in redact_paths(about).items() if value is not None})


@functools.lru_cache(maxsize=1)
def model_type(path: str | None) -> str | None:
    """The `model_type` of a language model on this machine; None for one of the hub, which is not asked."""
    if path is None:
        return None
    try:
        source, local = locate(LanguageModelConfig(path=path))
    except UserError:
        return None
    file = Path(source) / "config.json"
    found = read_json(file).get("model_type") if local and file.is_file() else None
    return found if isinstance(found, str) else None


def prepended_tokens(model: dict[str, Any], data: dict[str, Any]) -> list[int] | None:
    """The tokens that training put before every sequence: BOS or none; None where that cannot be known here.

    `model` and `data` are the tables of a run. A document is preceded by the BOS of the model's tokenizer, if it
    has one, which only a model on this machine tells; the hub is not asked.
    """
    if data.get("packing") == "stream":
        return []
    if not model.get("path"):
        return None
    try:
        bos = _bos(model["path"], model.get("revision"))
    except UserError:
        return None
    return [] if bos is None else [bos]


@functools.lru_cache(maxsize=1)
def _bos(path: str, revision: str | None) -> int | None:
    """Kept, as a run has many coders and one model."""
    return load_tokenizer(LanguageModelConfig(path=path, revision=revision)).bos_id


def _text(coder: FinishedCoder, model: dict[str, Any]) -> dict[str, Any]:
    """What the run's suite.toml says of the text; nothing for a folder that is in no run, or that has seen no text."""
    tables = coder.run_tables
    data = tables.get("data", {})
    if not tables.get("coders") or not data.get("text"):
        return {}
    found = {"text": data["text"], "packing": data.get("packing"), "context_size": data.get("context")}
    hub = [name for name in data["text"] if redact_paths(name) == name and "://" not in name and "/" in name]
    first = prepended_tokens(model, data)
    return found | {
        "prepend_bos": None if first is None else bool(first),
        "dataset_path": hub[0] if hub else None,
    }


def _l0(coder: FinishedCoder, label: str | None) -> float | None:
    """As it was measured: by the evaluation named, else on held-out text, else by the only evaluation there is."""
    labels = coder.labels()
    if label is None and HELD_OUT not in labels and len(labels) != 1:
        return None
    found = coder.evaluation(label or labels[0])
    return None if found is None else found.content.get("l0")
