"""docs/recipes.md says what the recipe and suite files say: every field of the files stands there, and no other."""

import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from panscope import builtin
from panscope.config import read_toml
from panscope.lms.facts import facts_of
from panscope.lms.load import LanguageModelConfig

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"
SETTINGS = ("suite", "model", "tokens", "batch", "text", "packing", "context")
CELLS = ("suite", "wiring", "sites", "layers", "width", "sparsity", "tokens", "recipe", "coders")

Table = tuple[str, tuple[str, ...], list[list[str]]]


def tables() -> Iterator[Table]:
    """(heading above, column names, rows) of every table of the page."""
    heading, rows = "", []
    for line in [*DOCS.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("#"):
            heading = line.strip("# `")
        if line.startswith("|"):
            rows.append([cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            yield heading, tuple(rows[0]), rows[2:]
            rows = []


def value(text: str) -> Any:
    return tomllib.loads(f"value = {text}")["value"]


def flat(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"short_run.power": 0.5, ...}; `fields.` is left out, as in the page."""
    found: dict[str, Any] = {}
    for key, entry in table.items():
        name = f"{above}{key}"
        found |= flat(entry, f"{name}.") if isinstance(entry, dict) else {name.removeprefix("fields."): entry}
    return found


def said_of_recipes() -> dict[str, dict[str, Any]]:
    found = {}
    for heading, columns, rows in tables():
        if columns == ("field", "value", "source"):
            assert all(source for _, _, source in rows), heading
            assert len({field for field, _, _ in rows}) == len(rows), heading
            found[heading] = {field: value(text) for field, text, _ in rows}
    return found


def test_the_page_has_every_recipe_and_no_other() -> None:
    assert sorted(said_of_recipes()) == sorted(path.stem for path in builtin.RECIPES.glob("*.toml"))


@pytest.mark.parametrize("path", sorted(builtin.RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_number_of_a_recipe_is_the_page_s(path: Path) -> None:
    written = flat(read_toml(path))
    source = written.pop("source")
    said = said_of_recipes()[path.stem]
    assert said == written
    assert [type(said[name]) for name in said] == [type(written[name]) for name in said]
    assert f"Source: {source}\n" in DOCS.read_text(encoding="utf-8")


def several(entry: Any) -> list[Any]:
    return entry if isinstance(entry, list) else [entry]


def coders_of(table: dict[str, Any], n_layers: int) -> int:
    """How many coders a `[[coders]]` table is, counted here and not by the planner."""
    layers = 1 if table.get("wiring") == "multilayer" else n_layers
    if table["layers"] != "all":
        layers = len(table["layers"])
    width = several(table.get("width", table.get("expansion")))
    return math.prod(map(len, (several(table["sites"]), width, several(table["sparsity"])))) * layers


def written_settings(name: str, suite: dict[str, Any]) -> tuple[Any, ...]:
    data = suite["data"]
    model, batch = suite["model"]["path"], suite["train"]["batch"]
    return name, model, suite["tokens"], batch, data["text"], data["packing"], data.get("context")


def written_cells(name: str, suite: dict[str, Any]) -> list[tuple[Any, ...]]:
    n_layers = facts_of(LanguageModelConfig(path=suite["model"]["path"])).n_layers
    return [
        (
            name,
            table.get("wiring", "sae"),
            table["sites"],
            table["layers"],
            (table.get("width"), table.get("expansion")),
            table["sparsity"],
            table.get("tokens", suite["tokens"]),
            table["recipe"],
            coders_of(table, n_layers),
        )
        for table in suite["coders"]
    ]


def count(text: str) -> int:
    return int(text.replace(",", ""))


def said_settings(row: list[str]) -> tuple[Any, ...]:
    name, model, tokens, batch, text, packing, context = row
    return name, model, count(tokens), count(batch), value(text), packing, count(context) if context else None


def said_cell(row: list[str]) -> tuple[Any, ...]:
    name, wiring, sites, layers, width, sparsity, tokens, recipe, coders = row
    times = width.endswith("x")
    number = value(width.rstrip("x `"))
    found = (None, number) if times else (number, None)
    return name, wiring, value(sites), value(layers), found, value(sparsity), count(tokens), recipe, count(coders)


def test_every_suite_is_the_page_s() -> None:
    files = {path.stem: read_toml(path) for path in sorted(builtin.SUITES.glob("*.toml"))}
    assert all(suite["name"] == name for name, suite in files.items())
    rows = {columns: [row for _, c, rows in tables() if c == columns for row in rows] for columns in (SETTINGS, CELLS)}
    written = sorted(written_settings(name, suite) for name, suite in files.items())
    assert sorted(map(said_settings, rows[SETTINGS])) == written
    cells = [cell for name, suite in files.items() for cell in written_cells(name, suite)]
    assert sorted(map(said_cell, rows[CELLS]), key=str) == sorted(cells, key=str)


def test_the_page_has_no_table_that_is_not_compared() -> None:
    assert {columns for _, columns, _ in tables()} == {("field", "value", "source"), SETTINGS, CELLS}
