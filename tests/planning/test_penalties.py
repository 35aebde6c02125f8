"""A penalty that will leave no latent active is said; what counts as usual is what recipes and suites have."""

import tomllib
from typing import Any

import pytest

from panscope import builtin, coders
from panscope.planning import recipe
from panscope.planning.warnings import warn_large_penalty
from tests.support.paper_lm import planned

LARGEST = {
    name: config.largest_coefficient
    for name, (config, _) in coders.ARCHITECTURES.items()
    if config.largest_coefficient is not None
}


def said(**table: Any) -> list[str]:
    return warn_large_penalty(planned({"width": 64, "layers": [1], **table}))


@pytest.mark.parametrize(("architecture", "sparsity"), [("jumprelu", 32), ("gated", 32), ("relu", 32)])
def test_an_l0_where_a_penalty_belongs_is_said(architecture: str, sparsity: float):
    (line,) = said(architecture=architecture, sparsity=sparsity)
    assert f"sparsity is 32, which is a penalty for {architecture}, and the recipes have at most" in line
    assert ("for an L0 of 32 write --target-l0 32" in line) == (architecture == "jumprelu")


def test_a_penalty_is_said_once_for_all_its_coders():
    assert len(said(architecture="jumprelu", sparsity=[1e-3, 8, 32], sites=["resid_post", "mlp_out"])) == 2


def test_what_is_usual_is_not_spoken_of():
    assert said(architecture=["topk", "batchtopk", "matryoshka"], sparsity=32) == []
    assert said(architecture="jumprelu", target_l0=32) == []
    for architecture, (largest, _) in LARGEST.items():
        assert said(architecture=architecture, sparsity=largest) == []


def test_nothing_that_ships_is_above_the_largest():
    """And every architecture that has a penalty has a bound."""
    priced = {name for name, (config, _) in coders.ARCHITECTURES.items() if not config.selects_k}
    assert set(LARGEST) == priced
    found: dict[str, list[float]] = {name: [] for name in LARGEST}
    tables = [table for file in builtin.SUITES.glob("*.toml") for table in tomllib.loads(file.read_text())["coders"]]
    tables += [{"recipe": name, **recipe.load(name).fields} for name in recipe.names()]
    for table in tables:
        architecture = table.get("architecture") or recipe.load(table["recipe"]).architectures()[0]
        values = table.get("sparsity", [])
        if architecture in found:
            found[architecture] += values if isinstance(values, list) else [values]
    assert max(found["jumprelu"]) == LARGEST["jumprelu"][0]
    assert all(value <= LARGEST[name][0] for name, values in found.items() for value in values)
