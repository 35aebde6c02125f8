"""How the coders of a run were trained, as its model card tells it: a row for each combination of
settings, and the papers behind them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from panscope.coders.wiring import Wiring
from panscope.planning import recipe
from panscope.planning.wirings import layers_of, site_text
from panscope.publishing.markdown import code, in_order, some, table

_COLUMNS = ("coders", "recipe", "trained as", "tokens", "learning rate", "normaliser")


def settings_table(coders: Mapping[str, Mapping[str, Any]], suite: Mapping[str, Any]) -> str:
    """A table with a row for each combination of settings that coders, config.json by name, were trained with."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, config in coders.items():
        groups.setdefault(_settings(config, suite), []).append(name)
    return table(_COLUMNS, ((_which(group, list(coders)), *settings) for settings, group in groups.items()))


def sources(coders: Iterable[Mapping[str, Any]], suite: Mapping[str, Any]) -> list[str]:
    """A line for each recipe of coders, by their config.json: its name, and the paper or code its numbers are from."""
    used = in_order(name for config in coders for name in _recipes(config, suite.get("coders", ())))
    return [f"`{name}`: {recipe.load(name).source}" for name in used if name in recipe.names()]


def _settings(config: Mapping[str, Any], suite: Mapping[str, Any]) -> tuple[str, ...]:
    """All columns of a coder but the first."""
    schedule = config.get("schedule", {})
    return (
        code(_recipes(config, suite.get("coders", ()))),
        code([config["training"]["coder"]["architecture"]]),
        f"{config['tokens']:,}" if config.get("tokens") else "-",
        code(in_order([schedule.get("learning_rate")])),
        code(in_order([schedule.get("normaliser")])),
    )


def _recipes(config: Mapping[str, Any], tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """The recipe of a coder: that of the table of suite.toml that says of it what its config.json says."""
    wiring = Wiring.read(config["wiring"], "wiring")
    own = {"wiring": wiring.wiring, "sites": [site_text(wiring)], "layers": layers_of(wiring)}
    own |= config["training"]["coder"] | config.get("schedule", {})
    return in_order(
        one.get("recipe") for one in tables if all(one[field] == own[field] for field in one.keys() & own.keys())
    )


def _which(group: Sequence[str], every: Sequence[str]) -> str:
    """Some coders among all: by a word within their names that no other's has, else by their names."""
    if len(group) == len(every):
        return "all"
    others = set(every).difference(group)
    for word in group[0].split("-")[1:-1] if len(group) > 1 else ():
        if all(f"-{word}-" in name for name in group) and not any(f"-{word}-" in name for name in others):
            return f"{len(group):,} with `-{word}-` in the name"
    return some(group)
