"""The model card of a published run: what, on which model and text, how, how well, under which licence, how to load it.

Plain Markdown under the YAML header that the hub reads. Everything in it comes from the run: `config.json` and
`eval.json` of each coder, `suite.toml`, and the report's figures. Nothing in it depends on the day or the machine.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import panscope
from panscope import coders
from panscope.coders.wiring import WIRINGS, Wiring
from panscope.planning import names
from panscope.publishing import snippets
from panscope.publishing import training_summary as trained
from panscope.publishing.markdown import code, in_order, joined, plain, some, table
from panscope.types import UserError

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
README = "README.md"
_BUILT_IN = "panscope://demo"
_TAG = "panscope"
_TAGS = ("sparse-autoencoder", "saelens", _TAG, "mechanistic-interpretability")
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
- **FVU**: squared error of the reconstruction over all tokens, divided by that of always predicting the mean: 0 is
  perfect, 1 is no better than the mean.
- **delta loss**: the language model's next-token loss with the reconstruction in place of the activations, minus its
  loss as it is, in nats a token.
- **loss recovered**: how much of the loss that comes of replacing the activations by zeros the reconstruction wins
  back: (loss with zeros - loss with the reconstruction) / (loss with zeros - loss as it is). 100 % is as good as the
  activations themselves, 0 % no better than zeros.
- **dead**: the share of latents that fired on none of these tokens."""


@dataclass(frozen=True)
class CardFigure:
    """A figure of the report."""

    svg: str
    title: str
    look: str
    """What to look for."""


@dataclass(frozen=True)
class CardEntry:
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
    entries: tuple[CardEntry, ...]
    figures: Mapping[str, CardFigure]
    """By path in the repository."""
    prepended_tokens: Sequence[int] | None
    """The tokens that training put before every text; None where that is not known."""
    ended: str
    """The day on which the run was done, as 2026-11-21; empty where the run does not say."""
    is_folder: bool
    """Whether the language model was a folder of the machine that the run is of."""


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
    """The text of README.md: what decides whether the coders are of use first, details after."""
    sections = (_title, _feeding, _use, _quality, _figures, _how, _files, _licence)
    parts = [_header(card), *(section(card) for section in sections)]
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
    counts = {kind: sum(entry.config["wiring"]["wiring"] == kind for entry in card.entries) for kind in WIRINGS}
    kinds = [f"{n:,} {WIRINGS[kind].plural if n > 1 else WIRINGS[kind].singular}" for kind, n in counts.items() if n]
    made = "imported into" if all(entry.config.get("origin") for entry in card.entries) else "trained with"
    return (
        f"# {card.repository.partition('/')[2]}\n\n"
        f"{joined(kinds)} on the activations of `{_model(card)}`, {made} Panscope{_measured(card)}.{_where(card)}\n\n"
        f"{table(('', ''), _facts(card).items())}"
    )


def _where(card: Card) -> str:
    """Where the language model is, if not on the hub."""
    if _model(card) == _BUILT_IN:
        return " That is the small model built into the Python package `panscope`; it is not on the hub."
    return " That model was a folder and is not public under a hub id." if card.is_folder else ""


def _facts(card: Card) -> dict[str, str]:
    model = card.entries[0].config.get("model") or {}
    revision = f", revision `{plain(model['revision'])}`" if model.get("revision") else ""
    weights = in_order(_weights(entry.config) for entry in card.entries)
    return {
        "Language model": f"`{_model(card)}`{revision}"
        + (f" (xxh3 of its weights: `{weights[0]}`)" if len(weights) == 1 else ""),
        "Sites": some(in_order(site for entry in card.entries for site in entry.config["wiring"]["predicts"])),
        "Architectures": ", ".join(in_order(e.config["coder"]["architecture"] for e in card.entries)),
        "Latents": ", ".join(f"{n:,}" for n in sorted({e.config["coder"]["width"] for e in card.entries})),
    }


def _weights(config: Mapping[str, Any]) -> str | None:
    """The checksum of the weights of the model that a coder was trained on; None for an imported coder."""
    identity = config.get("identity")
    return None if identity is None else identity["model"]["weights"]


def _feeding(card: Card) -> str:
    """Which rows the coders are for."""
    measured = any(entry.numbers for entry in card.entries)
    if not _trained(card):
        said = "Whether these coders were trained with BOS before a text, and on which tokens, is their makers' to say."
        numbers = " Rows of BOS and other special tokens are not in the numbers below."
        return f"{_FEED}{said}{numbers if measured else ''}"
    first = "Put no BOS before a text: training put none."
    if card.prepended_tokens is None:
        first = "Put BOS before every text if the model has one, as training did."
    elif card.prepended_tokens:
        first = f"Put BOS (token {card.prepended_tokens[0]}) before every text, as training did."
    turns = _turns(card.suite.get("data", {}).get("chat"))
    zeros = card.suite.get("activations", {}).get("special_tokens") == "zero"
    why = "they were zeros in training" if zeros else "these coders were not trained on them"
    why += " and not measured on them" if measured else ""
    return f"{_FEED}{first}{turns} Leave out the rows of BOS and other special tokens: {why}."


_FEED = "## What to feed\n\n"


def _in_code(prefix: str) -> str:
    return "`" + json.dumps(prefix).replace("`", "\\u0060") + "`"


def _turns(chat: Mapping[str, Any] | None) -> str:
    """Between what the texts stood, where they stood in a chat; JSON has the prefixes exactly, in code."""
    if chat is None:
        return ""
    user, model = (_in_code(chat[part]) for part in ("user", "model"))
    if chat.get("next_user") is not None:
        user += f" (later queries: {_in_code(chat['next_user'])})"
    only = f" Only rows of the {chat['content']} were used." if chat.get("content", "all") != "all" else ""
    return f" Texts stood in a chat, between {user}, whose rows are left out too, and {model}.{only}"


def _measured(card: Card) -> str:
    """How many of the coders have numbers."""
    count = sum(entry.numbers is not None for entry in card.entries)
    if count == len(card.entries):
        return " and measured with it"
    return f", {count:,} of them measured with it" if count else ""


def _quality(card: Card) -> str:
    measured = [entry for entry in card.entries if entry.numbers]
    if not measured:
        return "## Quality\n\nThese coders have not been measured."
    heading = ("coder", "site", *_NUMBERS)
    rows = [(f"`{entry.name}`", _place(entry), *_row(entry.numbers or {})) for entry in card.entries]
    return f"## Quality\n\n{_measured_on(card, measured)}\n\n{table(heading, rows)}\n\n{_MEANINGS}"


def _measured_on(card: Card, measured: list[CardEntry]) -> str:
    """On which text, the same for all, in which model, and by which definitions."""
    numbers = measured[0].numbers or {}
    on, tokens = numbers.get("evaluated_on", {}), [int((entry.numbers or {}).get("tokens") or 0) for entry in measured]
    part = "text kept from training" if on.get("part") == "held_out" else "text"
    amount = f"{min(tokens):,}" if min(tokens) == max(tokens) else f"{min(tokens):,} to {max(tokens):,}"
    return (
        f"On {amount} tokens of {part} ({code(on.get('text', []))}), sequences of at most {on.get('context', '-')} "
        f"tokens{_otherwise(card, on)}; ± is half of the 95 % interval over sequences. `eval.json` of each coder has "
        "more."
    )


def _otherwise(card: Card, on: Mapping[str, Any]) -> str:
    """How the evaluation differs from the usual one, in words that follow a comma."""
    model, dtype = plain(on.get("model") or _model(card)), on.get("coder_dtype") or "float32"
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


def _place(entry: CardEntry) -> str:
    wiring = entry.config["wiring"]
    if WIRINGS[wiring["wiring"]].predicts_other:
        return f"{wiring['reads'][0]} → {wiring['predicts'][0]}"
    sites = wiring["predicts"]
    return sites[0] if len(sites) == 1 else f"{sites[0]} … {sites[-1]}"


def _figures(card: Card) -> str:
    shown = [f"![{figure.title}]({path})\n\n{figure.look}" for path, figure in card.figures.items()]
    return "\n\n".join(["## Sparsity and fidelity", *shown]) if shown else ""


def _use(card: Card) -> str:
    """Rows of one coder, code that loads it, and which coders only Panscope loads."""
    entry = _example(card)
    others = any(one.cfg.get("reshape_activations") == "hook_z" for one in card.entries)
    read = snippets.rows(_model(card), entry.config.get("model") or {}, entry.cfg, card.prepended_tokens)
    code = snippets.snippets(card.repository, entry.name, entry.cfg, heads=others)
    parts = ["## Use", _reads(entry, bool(read)), read, *code]
    own = [f"- `{entry.name}`: {entry.refused}" for entry in card.entries if entry.refused]
    if own:
        parts.append("SAELens has no place for these, Panscope loads them:\n\n" + "\n".join(own))
    return "\n\n".join(part for part in parts if part)


def _reads(entry: CardEntry, shown: bool) -> str:
    """What the example reads; of SAELens' files, by which names."""
    places = entry.cfg["metadata"]["panscope"]["reads"] if entry.cfg else ()
    if not places:
        sites = joined([f"`{site}`" for site in entry.config["wiring"]["reads"]])
        return (
            f"`{entry.name}` reads {sites}, a row a token, side by side: `x` below. The `config.json` of every coder "
            "names its sites."
        )
    either = " or ".join(f"`{place['hook_name']}`" for place in places)
    modules = " or ".join(f"`{place['hf_hook_name']}`" for place in places if place["hf_hook_name"])
    known = f", {modules} in transformers" if modules else ""
    then = "These lines get the rows `x`" if shown else f"`x` are the rows, [tokens, {entry.cfg['d_in']}]"
    return (
        f"`{entry.name}` reads a row a token of {either} in TransformerLens{known}. In the `cfg.json` of every coder "
        "`hook_name` and `hf_hook_name` say what it reads; the latter is a module's path and which end of the module. "
        f"{then}:"
    )


def _example(card: Card) -> CardEntry:
    name, _ = snippets.example([(entry.name, entry.cfg) for entry in card.entries])
    return next(entry for entry in card.entries if entry.name == name)


def _how(card: Card) -> str:
    """Of coders that were trained here, the numbers; of others, where they come from."""
    ours, facts, rows = _trained(card), {}, ""
    if ours:
        data, train = card.suite.get("data", {}), card.suite.get("train", {})
        facts = {
            "Text": code(_text(card)),
            "Sequences": f"{data.get('packing', '-')}, at most {data.get('context', '-')} tokens",
            "Rows a step": f"{train['batch']:,}" if train.get("batch") else "-",
        }
        rows = trained.settings_table({entry.name: entry.config for entry in ours}, card.suite)
    origins = [entry.config["origin"] for entry in card.entries if entry.config.get("origin")]
    if origins:
        facts["Imported from"] = code(in_order(origin.get("format") for origin in origins))
    parts = ["## How they were made", table(("", ""), facts.items()), rows]
    parts.append("Every further number is in the `config.json` of each coder.")
    return "\n\n".join(part for part in parts if part)


def _files(card: Card) -> str:
    """What is in a coder's folder, and what its name says."""
    entry = _example(card)
    fields = entry.config["training"]["coder"]
    coder = coders.config_type(fields["architecture"]).read(fields, entry.name)
    wirings = [Wiring.read(one.config["wiring"], one.name) for one in card.entries]
    theirs = "`cfg.json` and `sae_weights.safetensors` are for SAELens, " if any(e.cfg for e in card.entries) else ""
    own = "`weights.safetensors` is for Panscope, " if any(not e.cfg for e in card.entries) else ""
    wiring, ours = Wiring.read(entry.config["wiring"], entry.name), not entry.config.get("origin")
    means = names.meaning(wiring, coder, knows_coefficient=ours)
    return (
        f"## Names and files\n\nA folder a coder. `{entry.name}`: {means}. Letters: {names.letters(wirings)}.\n\n"
        f"{theirs}{own}`config.json` says how a coder was trained, `eval.json` has every number. All normalisation is "
        "folded in: every coder takes activations as the model computes them, unless its configuration says otherwise."
    )


def _licence(card: Card) -> str:
    """Under which licence, from which tool, and what to cite."""
    ended = f" The run `{plain(card.run)}` ended on {card.ended}." if card.ended else ""
    parts = [
        "## Licence and sources",
        f"`{card.licence}`. The language model and the text have licences of their own.",
        f"Written by Panscope {panscope.__version__}.{ended}",
    ]
    sources = trained.sources([entry.config for entry in _trained(card)], card.suite)
    if sources:
        parts.append(
            "The recipes, and what to cite with these coders:\n\n" + "\n".join(f"- {source}" for source in sources)
        )
    return "\n\n".join(parts)


def _trained(card: Card) -> list[CardEntry]:
    return [entry for entry in card.entries if not entry.config.get("origin")]


def _model(card: Card) -> str:
    return plain((card.entries[0].config.get("model") or {}).get("path") or "an unnamed model")


def _text(card: Card) -> list[str]:
    return list(card.suite.get("data", {}).get("text", ())) if card.suite.get("coders") else []
