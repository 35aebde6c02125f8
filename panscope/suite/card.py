"""The model card of a published run: what, on which model and text, how, how well, under which licence, how to load it.

Plain Markdown under the YAML header that the hub reads. Everything in it comes from the run: `config.json` and
`eval.json` of each coder, `suite.toml`, and the report's figures. Nothing in it depends on the day or the machine.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from panscope.suite import snippets
from panscope.types import UserError

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
README = "README.md"
_TAG = "panscope"
_TAGS = ("sparse-autoencoder", "saelens", _TAG, "mechanistic-interpretability")
_KINDS = {
    "sae": ("sparse autoencoder", "sparse autoencoders"),
    "transcoder": ("transcoder", "transcoders"),
    "multilayer": ("sparse autoencoder of several layers", "sparse autoencoders of several layers"),
    "crosscoder": ("crosscoder", "crosscoders"),
}
_MOST_SITES = 8
_NUMBERS: dict[str, tuple[str, Callable[[float], str], bool]] = {
    "L0": ("l0", "{:.1f}".format, False),
    "FVU": ("fvu", "{:.4f}".format, True),
    "delta loss": ("delta_loss", "{:+.4f}".format, True),
    "loss recovered": ("loss_recovered", "{:.1%}".format, False),
    "dead": ("dead_fraction", "{:.1%}".format, False),
}
"""A column of the table: its field of eval.json, how it is written, whether with its interval."""
_MEANINGS = """\
- **L0**: how many latents are active on a token, on average.
- **FVU**: the fraction of the activations' variance that the reconstruction leaves unexplained.
- **delta loss**: how much worse the language model predicts, in nats a token, with the reconstruction in place.
- **loss recovered**: the same between setting the site to zero (0 %) and leaving it alone (100 %).
- **dead**: the share of latents that never fired during the measurement."""


@dataclass(frozen=True)
class Figure:
    """A figure of the report."""

    svg: str
    title: str
    look: str
    """What to look for."""


@dataclass(frozen=True)
class Entry:
    """One coder in the card."""

    name: str
    config: Mapping[str, Any]
    """Its config.json as it is published."""
    cfg: Mapping[str, Any]
    """SAELens' cfg.json; empty where SAELens has no place for the coder."""
    numbers: Mapping[str, Any] | None
    """Its eval.json as it is published; None where it was not measured."""
    refused: str
    """Why SAELens has no place for it; else empty."""


@dataclass(frozen=True)
class Card:
    """All that a card is written from."""

    run: str
    repository: str
    licence: str
    suite: Mapping[str, Any]
    entries: tuple[Entry, ...]
    figures: Mapping[str, Figure]
    """By path in the repository."""


def is_ours(text: str) -> bool:
    """Whether a README.md is a card of ours, which has our tag in its header."""
    header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    return header is not None and re.search(rf"^\s*-\s*{_TAG}\s*$", header[1], re.MULTILINE) is not None


def check_licence(licence: str) -> str:
    """A licence as the hub writes it; raises UserError otherwise."""
    if not _LICENCE.fullmatch(licence):
        raise UserError(
            f"licence is {licence!r}: write it as the hub does, in small letters, such as cc-by-4.0, apache-2.0 or mit"
        )
    return licence


def write_card(card: Card) -> str:
    """The text of README.md."""
    parts = [_header(card), _title(card), _what(card), _how(card), _quality(card), _figures(card), _loading(card)]
    parts.append(f"## Licence\n\n`{card.licence}`. The language model and the text have licences of their own.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(card: Card) -> str:
    """What the hub reads; JSON strings are YAML strings."""
    lines = [
        f"license: {card.licence}",
        f"library_name: {'saelens' if any(e.cfg for e in card.entries) else 'panscope'}",
    ]
    model, text = _model(card), [name for name in _text(card) if _HUB_ID.fullmatch(name)]
    if _HUB_ID.fullmatch(model):
        lines.append(f"base_model: {json.dumps(model)}")
    if text:
        lines += ["datasets:", *(f"  - {json.dumps(name)}" for name in text)]
    lines += ["tags:", *(f"  - {tag}" for tag in _TAGS)]
    return "\n".join(["---", *lines, "---"])


def _title(card: Card) -> str:
    counts = {kind: sum(entry.config["wiring"]["wiring"] == kind for entry in card.entries) for kind in _KINDS}
    kinds = [f"{n:,} {_KINDS[kind][n > 1]}" for kind, n in counts.items() if n]
    made = "imported into" if all(entry.config.get("origin") for entry in card.entries) else "trained with"
    return (
        f"# {card.repository.partition('/')[2]}\n\n"
        f"{_joined(kinds)} on the activations of `{_model(card)}`, {made} Panscope{_measured(card)}."
    )


def _measured(card: Card) -> str:
    """How many of the coders have numbers."""
    count = sum(entry.numbers is not None for entry in card.entries)
    if count == len(card.entries):
        return " and measured with it"
    return f", {count:,} of them measured with it" if count else ""


def _what(card: Card) -> str:
    sites = _in_order(site for entry in card.entries for site in entry.config["wiring"]["predicts"])
    shown = [f"`{site}`" for site in sites[:_MOST_SITES]] + [f"and {len(sites) - _MOST_SITES} more"] * (
        len(sites) > _MOST_SITES
    )
    model, revision = card.entries[0].config.get("model") or {}, ""
    if model.get("revision"):
        revision = f", revision `{model['revision']}`"
    weights = _in_order(entry.config.get("model_weights") for entry in card.entries)
    facts = {
        "Language model": f"`{_model(card)}`{revision}"
        + (f" (xxh3 of its weights: `{weights[0]}`)" if len(weights) == 1 else ""),
        "Sites": ", ".join(shown),
        "Architectures": ", ".join(_in_order(e.config["coder"]["architecture"] for e in card.entries)),
        "Latents": ", ".join(f"{n:,}" for n in sorted({e.config["coder"]["width"] for e in card.entries})),
    }
    return f"## What\n\n{_table(('', ''), facts.items())}\n\n{_NAMES}"


_NAMES = """\
A folder a coder: `L03R-8x-topk-k32` is layer 3, site R (R residual stream after the block, Z attention heads before
W_O, A attention output, M MLP output, I and N MLP input with and without the norm's gain, TC transcoder N to M), 8
latents a dimension, how it was trained, K = 32. `cfg.json` has the site by TransformerLens' hook name and by Hugging
Face's module path. All normalisation is folded in: every coder takes activations as the model computes them, unless
its `cfg.json` or `config.json` says otherwise."""


def _how(card: Card) -> str:
    """Of coders that were trained here, the numbers; of others, where they come from."""
    facts: dict[str, str] = {}
    trained = [entry for entry in card.entries if not entry.config.get("origin")]
    if trained:
        data, train = card.suite.get("data", {}), card.suite.get("train", {})
        facts = {
            "Text": _listed(_text(card)),
            "Sequences": f"{data.get('packing', '-')}, at most {data.get('context', '-')} tokens",
            "Tokens": ", ".join(f"{n:,}" for n in sorted({e.config.get("tokens") or 0 for e in trained})),
            "Rows a step": f"{train.get('batch', '-'):,}" if train.get("batch") else "-",
            "Recipe": _listed(_in_order(table.get("recipe") for table in card.suite.get("coders", ()))),
            "Trained as": _listed(_in_order(e.config["training"]["coder"]["architecture"] for e in trained)),
            "Learning rate": _listed(_in_order(_schedule(e, "learning_rate") for e in trained)),
            "Normaliser": _listed(_in_order(_schedule(e, "normaliser") for e in trained)),
        }
    others = [entry.config["origin"] for entry in card.entries if entry.config.get("origin")]
    if others:
        facts["Imported from"] = _listed(_in_order(origin.get("format") for origin in others))
    return f"## How\n\n{_table(('', ''), facts.items())}\n\nEvery further number is in the `config.json` of each coder."


def _schedule(entry: Entry, field: str) -> Any:
    return entry.config.get("schedule", {}).get(field)


def _quality(card: Card) -> str:
    measured = [entry for entry in card.entries if entry.numbers]
    if not measured:
        return "## Quality\n\nThese coders have not been measured."
    heading = ("coder", "site", *_NUMBERS)
    rows = [(f"`{entry.name}`", _place(entry), *_row(entry.numbers or {})) for entry in card.entries]
    return f"## Quality\n\n{_measured_on(card, measured)}\n\n{_table(heading, rows)}\n\n{_MEANINGS}"


def _measured_on(card: Card, measured: list[Entry]) -> str:
    """On which text, the same for all, and in which other model or way."""
    numbers = measured[0].numbers or {}
    on, tokens = numbers.get("evaluated_on", {}), [int((entry.numbers or {}).get("tokens") or 0) for entry in measured]
    part = "text kept from training" if on.get("part") == "held_out" else "text"
    amount = f"{min(tokens):,}" if min(tokens) == max(tokens) else f"{min(tokens):,} to {max(tokens):,}"
    return (
        f"On {amount} tokens of {part} ({_listed(on.get('text', []))}), sequences of at most {on.get('context', '-')} "
        f"tokens{_otherwise(card, on)}; ± is half of the 95 % interval over sequences. `eval.json` of each coder has "
        "more."
    )


def _otherwise(card: Card, on: Mapping[str, Any]) -> str:
    """What `panscope eval` was asked to do in another way, in words that follow a comma."""
    model, dtype = _plain(on.get("model") or _model(card)), on.get("coder_dtype") or "float32"
    asked = {
        f"in the model `{model}`": model != _model(card),
        "the coders as they were trained, before they were folded and converted": on.get("as_trained"),
        f"computed in {dtype}": dtype != "float32",
        "special tokens replaced too": on.get("splice") == "all",
    }
    return "".join(f", {words}" for words, holds in asked.items() if holds)


def _row(numbers: Mapping[str, Any]) -> list[str]:
    return [_number(numbers, *column) for column in _NUMBERS.values()]


def _number(numbers: Mapping[str, Any], field: str, written: Callable[[float], str], interval: bool) -> str:
    value = numbers.get(field)
    if value is None:
        return "-"
    ends = numbers.get("intervals", {}).get(field) if interval else None
    if not ends or None in ends:
        return written(value)
    return f"{written(value)} ± {(ends[1] - ends[0]) / 2:.4f}"


def _place(entry: Entry) -> str:
    wiring = entry.config["wiring"]
    if wiring["wiring"] == "transcoder":
        return f"{wiring['reads'][0]} → {wiring['predicts'][0]}"
    sites = wiring["predicts"]
    return sites[0] if len(sites) == 1 else f"{sites[0]} … {sites[-1]}"


def _figures(card: Card) -> str:
    shown = [f"![{figure.title}]({path})\n\n{figure.look}" for path, figure in card.figures.items()]
    return "\n\n".join(["## Sparsity and fidelity", *shown]) if shown else ""


def _loading(card: Card) -> str:
    """Ways to load one of the coders, and which ones only we load."""
    ways = snippets.ways(card.repository, [(entry.name, entry.cfg) for entry in card.entries])
    text = "\n\n".join(["## Load", *ways])
    own = [f"- `{entry.name}`: {entry.refused}" for entry in card.entries if entry.refused]
    return text + ("\n\nSAELens has no place for these, Panscope loads them:\n\n" + "\n".join(own) if own else "")


def _model(card: Card) -> str:
    return _plain((card.entries[0].config.get("model") or {}).get("path") or "an unnamed model")


def _text(card: Card) -> list[str]:
    return list(card.suite.get("data", {}).get("text", ())) if card.suite.get("coders") else []


def _in_order(values: Iterable[Any]) -> list[Any]:
    """Each once, as they first come, without None."""
    return [value for value in dict.fromkeys(values) if value is not None]


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(f"`{_plain(value)}`" for value in values) or "-"


def _plain(value: Any) -> str:
    """What a stranger's file may have said, without what Markdown and HTML give a meaning to."""
    return " ".join(re.sub(r"[`|<>\[\]]", " ", str(value)).split())


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(heading)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
