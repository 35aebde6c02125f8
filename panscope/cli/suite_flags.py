"""A suite from the command line: a file or a built-in suite with flags put over it, or one made of flags alone.

For a suite that is named, --wiring, --sites, --layers and --widths choose among its coders, and every other flag takes
the place of what the suite says. In a suite made of flags alone all of them define the grid.
"""

from collections.abc import Mapping
from typing import Any

from panscope import coders
from panscope.api.suites import select, suite_file
from panscope.config import read_toml
from panscope.data.documents import HUB_ONLY
from panscope.planning.plan import SuiteConfig
from panscope.types import UserError

_CODER_FLAGS = (
    "wiring", "sites", "layers", "recipe", "architecture", "width", "expansion", "sparsity", "target_l0",
    "learning_rate", "lr_warmup_steps", "as_published",
)  # fmt: skip

_DATA = {name: name for name in ("text", "column", "subset", "split", "context", "packing")}
_DATA["text_revision"] = "revision"
_CHOOSING = {"wiring": "wirings", "sites": "sites", "layers": "layers", "widths": "widths"}
"""Flags that choose among the coders of a suite that is named, and the fields of `api.select` that they are."""


def suite_from(name: str | None, flags: Mapping[str, Any]) -> SuiteConfig:
    """The suite that `name` and `flags` mean, the demo without both; raises UserError if they cannot be combined."""
    if name is None and flags.keys() & {"model", "text", "widths", *_CODER_FLAGS}:
        grid = _as_grid(flags)
        return SuiteConfig.read(_merged(_bare_suite(grid), grid), "the flags")
    chosen = {field: flags[flag] for flag, field in _CHOOSING.items() if flag in flags}
    others = {flag: value for flag, value in flags.items() if flag not in _CHOOSING}
    suite = replaced(name or "demo", others)
    return select(suite, **_selection(chosen)) if chosen else suite


def replaced(name: str, flags: Mapping[str, Any]) -> SuiteConfig:
    """The suite of that name with the flags in place of what it says, in every `[[coders]]` table."""
    return SuiteConfig.read(_merged(read_toml(suite_file(name)), flags), name)


def _as_grid(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a suite made of flags alone, where --widths is another name of --width."""
    if "width" in flags and "widths" in flags:
        raise UserError("--width and --widths are both given, and without a suite they say the same: give one of them")
    return {"width" if flag == "widths" else flag: value for flag, value in flags.items()}


def _selection(chosen: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `api.select`."""
    if isinstance(chosen.get("wirings"), str):
        chosen |= {"wirings": (chosen["wirings"],)}
    if "layers" in chosen:
        layers = _layers(chosen["layers"])
        chosen |= {"layers": () if layers == "all" else tuple(layers)}
    return chosen


def _bare_suite(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What a suite made of flags starts from."""
    needed = [] if "expansion" in flags else ["width"]
    needed += [] if flags.keys() & {"target_l0", "recipe"} else ["sparsity"]
    for name in needed:
        if name not in flags:
            other = " (for jumprelu, --target-l0 does too)" if name == "sparsity" else ""
            raise UserError(f"--{name} is missing: give it{other}, or name a suite such as `panscope train demo`")
    if "text" not in flags and flags.get("model", "panscope://demo") != "panscope://demo":
        raise UserError(f"--text is missing: say what text the model {flags['model']!r} should read")
    return {"coders": [{}]}


def _merged(tables: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's tables with flags put over them; coder flags go into every `[[coders]]` table."""
    merged = dict(tables)
    for name in ("tokens", "seed", "share"):
        if name in flags:
            merged[name] = flags[name]
    models = {"model": "path", "revision": "revision", "device": "device", "dtype": "dtype"}
    merged["model"] = _table(tables, "model") | _renamed(flags, models)
    data = _table(tables, "data")
    merged["data"] = (_for_other_text(data) if "text" in flags else data) | _renamed(flags, _DATA) | _chat(data, flags)
    merged["activations"] = _table(tables, "activations") | _source(flags)
    merged["train"] = _table(tables, "train") | _renamed(flags, {"kernels": "kernels", "batch": "batch"})
    over = {name: flags[name] for name in _CODER_FLAGS if name in flags}
    if "layers" in over:
        over["layers"] = _layers(over["layers"])
    over = {name: list(value) if isinstance(value, tuple) else value for name, value in over.items()}
    _check_sparsity(over)
    found = _coder_tables(tables)
    _check_alike(found, over)
    own = {"tokens"} if "tokens" in flags else set()
    merged["coders"] = [_overridden(table, over, own) for table in found]
    return merged


def _for_other_text(data: dict[str, Any]) -> dict[str, Any]:
    """The table [data] without what only its own hub dataset has."""
    return {name: value for name, value in data.items() if name not in HUB_ONLY}


def _check_sparsity(over: Mapping[str, Any]) -> None:
    """Refuse one sparsity for architectures of which some read it as K and others as a penalty's coefficient."""
    names = over.get("architecture", [])
    penalised = [name for name in names if not coders.config_type(name).selects_k]
    if penalised and len(penalised) < len(names) and over.keys() & {"sparsity", "target_l0"}:
        raise UserError(
            f"--architecture {' '.join(names)}: sparsity is K for some of these and a penalty's coefficient for "
            f"{', '.join(penalised)}: write a suite file with a [[coders]] table for each"
        )


def _chat(data: dict[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The prefixes of a fine-tuned model, if a flag gives them."""
    over = _renamed(flags, {"chat_user": "user", "chat_model": "model", "chat_next_user": "next_user"})
    return {"chat": _table(data, "chat") | over} if over else {}


def _source(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Where rows come from, if a flag says so."""
    if "store" in flags and "servers" in flags:
        raise UserError("--store and --servers are two sources of rows: give one of them")
    for name, source in (("store", "store"), ("servers", "server")):
        if name in flags:
            return {"source": source, name: flags[name]}
    return {}


def _check_alike(tables: list[dict[str, Any]], over: Mapping[str, Any]) -> None:
    """Refuse flags whose meaning differs from table to table: K and a penalty's coefficient are both a sparsity."""
    kinds = {(str(table.get("recipe")), str(table.get("architecture"))) for table in tables}
    for name in ("sparsity", "target_l0", "architecture", "recipe"):
        if name in over and len(kinds) > 1:
            raise UserError(
                f"--{name} {over[name]!r} would go into every [[coders]] table, but these are of different recipes or "
                "architectures: change the suite file"
            )


def _overridden(table: dict[str, Any], over: dict[str, Any], own: set[str]) -> dict[str, Any]:
    """A flag takes the place of what it excludes: a width of an expansion, an architecture of a recipe and its like.

    `own` are a table's own values that a flag for the whole suite takes the place of.
    """
    excluded = {"width": "expansion", "expansion": "width", "architecture": "recipe", "recipe": "architecture"}
    if "target_l0" in over and "target_l0" not in table:
        own = own | {"sparsity"}
    gone = own | {excluded[name] for name in over if name in excluded and excluded[name] not in over}
    return {key: value for key, value in table.items() if key not in gone} | over


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise UserError(f"{name} is {table!r}, expected a table: write it under a line [{name}]")
    return table


def _coder_tables(tables: dict[str, Any]) -> list[dict[str, Any]]:
    found = tables.get("coders", [])
    if not isinstance(found, list) or not all(isinstance(table, dict) for table in found):
        raise UserError(f"coders is {found!r}, expected tables: write each under a line [[coders]]")
    return found


def _renamed(flags: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {field: flags[flag] for flag, field in names.items() if flag in flags}


def _layers(words: tuple[str, ...]) -> list[int] | str:
    if words == ("all",):
        return "all"
    for word in words:
        if not word.isdecimal():
            raise UserError(f"--layers {word!r} is not a number: give layer numbers from 0, or the one word all")
    return [int(word) for word in words]
