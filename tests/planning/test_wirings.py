"""`wiring`, `sites`, `layers` and `tokens` of a `[[coders]]` table: which coders they mean, by name and by site."""

from typing import Any

import pytest
import torch

from panscope.activations.norms import SiteNorms
from panscope.planning.plan import Plan
from panscope.runs.normalisers import normaliser_of
from panscope.types import SITE_KINDS, Site, UserError
from tests.support.paper_lm import HEADS, LAYERS, PAPER_LM, WIDE, planned

TABLE: dict[str, Any] = {"width": 64, "sparsity": 4}


def names(*tables: dict[str, Any], **fields: Any) -> list[str]:
    return [coder.name for coder in planned(*tables, **fields).coders]


def sites(plan: Plan) -> list[list[str]]:
    """What each coder reads, which it also predicts."""
    assert all(coder.wiring.reads == coder.wiring.predicts for coder in plan.coders)
    return [[str(site) for site in coder.wiring.reads] for coder in plan.coders]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", ["all-R-2x-topk-k4"]),
        ([0, 1, 2, 3], ["all-R-2x-topk-k4"]),
        ([1, 2], ["L01-02-R-2x-topk-k4"]),
        ([0, 3], ["L00.03-R-2x-topk-k4"]),
        ([[0, 1], [2, 3]], ["L00-01-R-2x-topk-k4", "L02-03-R-2x-topk-k4"]),
        ([[0, 1, 2, 3], [1, 3]], ["all-R-2x-topk-k4", "L01.03-R-2x-topk-k4"]),
    ],
)
@pytest.mark.parametrize("wiring", ["multilayer", "crosscoder"])
def test_one_coder_over_all_layers_of_each_list(wiring: str, layers: Any, expected: list[str]):
    plan = planned(TABLE | {"wiring": wiring, "layers": layers})
    prefix = "CC-" if wiring == "crosscoder" else ""
    assert [coder.name for coder in plan.coders] == [prefix + name for name in expected]
    groups = layers if isinstance(layers, list) and isinstance(layers[0], list) else [layers]
    wanted = [range(LAYERS) if group == "all" else group for group in groups]
    assert sites(plan) == [[f"L{layer:02d}.resid_post" for layer in group] for group in wanted]


def test_every_entry_of_sites_is_a_coder_of_its_own():
    table = TABLE | {"wiring": "multilayer", "sites": ["resid_post", "attn_z"], "layers": [0, 2], "sparsity": [2, 4]}
    plan = planned(table)
    assert [coder.name for coder in plan.coders] == [
        *(f"L00.02-R-2x-topk-k{k}" for k in (2, 4)),
        *(f"L00.02-Z-{64 / HEADS:.4g}x-topk-k{k}" for k in (2, 4)),
    ]
    assert [coder.coder.d_in for coder in plan.coders] == [WIDE, WIDE, HEADS, HEADS]
    assert plan.sites() == [Site(0, "attn_z"), Site(0, "resid_post"), Site(2, "attn_z"), Site(2, "resid_post")]


def test_a_crosscoder_may_join_kinds_of_any_widths():
    table = {"wiring": "crosscoder", "sites": "resid_post + attn_z+mlp_out", "layers": 2, "sparsity": 4, "expansion": 8}
    plan = planned(table)
    (one,) = plan.coders
    assert sites(plan) == [["L02.resid_post", "L02.attn_z", "L02.mlp_out"]]
    assert (one.coder.d_in, one.coder.d_out) == (2 * WIDE + HEADS, 2 * WIDE + HEADS)
    assert one.coder.width == 8 * WIDE  # of the first site
    assert one.name.startswith("CC-L02-RZM-")
    assert plan.suite.coders[0]["sites"] == ["resid_post + attn_z + mlp_out"]


def test_joined_kinds_go_over_all_layers_layer_by_layer():
    table = TABLE | {"wiring": "crosscoder", "sites": ["resid_post + mlp_out", "attn_out"], "layers": [[0, 1], [3]]}
    with pytest.raises(UserError, match=r"wiring 'crosscoder' needs several sites, and layers \[3\] give one"):
        planned(table)
    plan = planned(table | {"sites": "resid_post + mlp_out"})
    assert [coder.name for coder in plan.coders] == ["CC-L00-01-RM-2x-topk-k4", "CC-L03-RM-2x-topk-k4"]
    assert sites(plan)[0] == ["L00.resid_post", "L00.mlp_out", "L01.resid_post", "L01.mlp_out"]


def test_one_table_may_list_every_wiring():
    plan = planned(TABLE | {"wiring": ["sae", "transcoder", "multilayer", "crosscoder"], "layers": [1, 2]})
    assert [coder.name for coder in plan.coders] == [
        "L01R-2x-topk-k4", "L02R-2x-topk-k4", "L01TC-2x-topk-k4", "L02TC-2x-topk-k4",
        "L01-02-R-2x-topk-k4", "CC-L01-02-R-2x-topk-k4",
    ]  # fmt: skip
    tables = plan.suite.coders
    assert [table["layers"] for table in tables] == [[1], [2], [1], [2], [[1, 2]], [[1, 2]]]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"wiring": "multilayer", "layers": 1}, "wiring 'multilayer' needs several sites, and layers [1] give one"),
        ({"wiring": "multilayer", "layers": [[1]]}, "needs several sites"),
        ({"wiring": "crosscoder", "layers": [1]}, "wiring 'crosscoder' needs several sites"),
        ({"wiring": "multilayer", "layers": [1, 1]}, "name each site once"),
        ({"wiring": "crosscoder", "sites": "mlp_out + mlp_out", "layers": 1}, "name each site once"),
        ({"wiring": "multilayer", "layers": [[0, 1], 2]}, "has lists in a list"),
        ({"wiring": "multilayer", "layers": [[0, [1]]]}, "layer [1] does not exist"),
        ({"wiring": "multilayer", "layers": [0, 4]}, "layer 4 does not exist"),
        ({"wiring": "multilayer", "layers": [[0, 4]]}, "layer 4 does not exist"),
        ({"wiring": "multilayer", "layers": [[]]}, "layers"),
        ({"wiring": "multilayer", "layers": []}, "layers is an empty list"),
        ({"wiring": "multilayer", "layers": "some"}, "layer 'some' does not exist"),
        ({"layers": [[0, 1]]}, "that is for several coders of wiring 'multilayer' or 'crosscoder'"),
        ({"wiring": "transcoder", "layers": [[0, 1]]}, "that is for several coders of wiring"),
        ({"wiring": ["sae", "multilayer"], "layers": [[0, 1]]}, "that is for several coders of wiring"),
        # Sites of other widths, 32 and 48 here, cannot be one multilayer coder.
        ({"wiring": "multilayer", "sites": "resid_post + attn_z", "layers": [0, 1]}, "wiring 'multilayer' cannot"),
        ({"sites": "resid_post + mlp_out", "layers": 0}, "wiring 'sae' cannot: use wiring 'crosscoder'"),
        ({"wiring": "crosscoder", "sites": "mlp_in -> mlp_out", "layers": [0, 1]}, "which wiring 'crosscoder' cannot"),
        ({"wiring": "crosscoder", "sites": "resid_post + nowhere", "layers": 0}, "site kind 'nowhere' is unknown"),
        ({"wiring": "transcoder", "sites": "mlp_in + attn_z -> mlp_out", "layers": 0}, "joins sites"),
        ({"wiring": "transcoder", "sites": "mlp_in -> mlp_in", "layers": 0}, "predicts another site than it reads"),
        ({"wiring": "crosscoder", "sites": "resid_post +", "layers": [0, 1]}, "site kind '' is unknown"),
        ({"wiring": []}, "'wiring' is an empty list"),
        ({"wiring": "multilayer", "layers": [True, 1]}, "layer True does not exist"),
    ],
)  # fmt: skip
def test_what_no_wiring_can_be_is_one_sentence(change: dict[str, Any], expected: str):
    with pytest.raises(UserError) as caught:
        planned(TABLE | change)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_may_train_for_fewer_or_more_tokens_than_the_suite():
    """Steps, schedules and short-run rules follow the coder's own length; the run lasts for the longest."""
    lengths: tuple[dict[str, Any], ...] = ({"tokens": 25_600}, {}, {"tokens": 512_000})
    tables = [TABLE | {"layers": layer, "recipe": "saebench"} | more for layer, more in enumerate(lengths)]
    plan = planned(*tables, tokens=256_000, train={"batch": 256})
    assert [coder.steps for coder in plan.coders] == [100, 1000, 2000]
    assert [coder.training.lr_decay_steps for coder in plan.coders] == [20, 200, 400]
    assert [coder.training.dead_window for coder in plan.coders] == [2_560, 25_600, 51_200]
    rates = [coder.training.learning_rate for coder in plan.coders]
    assert rates[0] >= rates[1] > rates[2]
    assert plan.steps == 2000
    assert [table["tokens"] for table in plan.suite.coders] == [25_600, 256_000, 512_000]
    assert (plan.log_every, plan.checkpoint_every) == (40, 400)


def test_tokens_may_be_a_list_told_apart_by_names():
    two = planned(TABLE | {"layers": 0, "tokens": [1_000, 2_000]}, train={"batch": 100}).coders
    assert [coder.steps for coder in two] == [10, 20]
    assert [coder.name.rpartition("-")[2] for coder in two] == ["tokens1000", "tokens2000"]


@pytest.mark.parametrize("tokens", [255, 0, -1, "many", 1.5, True])
def test_tokens_that_are_not_one_batch_are_one_sentence(tokens: Any):
    with pytest.raises(UserError, match=r"tokens is .*: expected a whole number, at least one batch of 256 rows"):
        planned(TABLE | {"tokens": tokens})


def norms_of(site: Site) -> SiteNorms:
    """Layer l: mean norm 2 + l and root mean square 3 + l, one more at mlp_out."""
    size = site.layer + (site.kind == "mlp_out")
    return SiteNorms(10, 2.0 + size, (3.0 + size) ** 2, torch.zeros(PAPER_LM.width(site)))


NORMS = {Site(layer, kind): norms_of(Site(layer, kind)) for layer in range(LAYERS) for kind in SITE_KINDS}


def factor(kind: str, norm: float, mean_square: float, d: int) -> float:
    """The three scalar conventions by their definitions."""
    known = {"unit_rms": mean_square**-0.5, "sqrt_d": d**0.5 / norm, "rms_sqrt_d": (d / mean_square) ** 0.5}
    return known.get(kind, 1.0)


@pytest.mark.parametrize("kind", ["unit_rms", "sqrt_d", "rms_sqrt_d", "standardise", "token_norm", "none"])
def test_the_factor_of_each_wiring(kind: str):
    """One for all rows of a multilayer coder, from their mean size; one a site of a crosscoder."""
    table = TABLE | {"normaliser": kind, "layers": [1, 2]}
    joined = table | {"wiring": "crosscoder", "sites": "resid_post + attn_z", "layers": 1}
    plan = planned(table | {"wiring": ["sae", "multilayer", "crosscoder"]}, joined)
    first, second, both, cross, mixed = [normaliser_of(coder, NORMS) for coder in plan.coders]
    one, two = factor(kind, 3, 16, WIDE), factor(kind, 4, 25, WIDE)
    for found, expected in ((first, one), (second, two), (both, factor(kind, 3.5, 20.5, WIDE))):
        assert (found.kind, found.parts) == (kind, ())
        assert (found.scale_in, found.scale_out) == (pytest.approx(expected), found.scale_in)
    assert [(part.width, part.scale) for part in cross.parts] == [
        (WIDE, pytest.approx(one)),
        (WIDE, pytest.approx(two)),
    ]
    wider = pytest.approx(factor(kind, 3, 16, HEADS))
    assert [(part.width, part.scale) for part in mixed.parts] == [(WIDE, pytest.approx(one)), (HEADS, wider)]


@pytest.mark.parametrize("by", ["target", "input"])
def test_a_transcoders_target_has_the_factor_it_was_told(by: str):
    table = TABLE | {"wiring": "transcoder", "layers": 1, "normaliser": "sqrt_d", "normalise_target_by": by}
    found = normaliser_of(planned(table).coders[0], NORMS)
    assert found.scale_in == pytest.approx(WIDE**0.5 / 3)
    assert found.scale_out == pytest.approx(WIDE**0.5 / (4 if by == "target" else 3))


def test_a_site_that_is_always_zero_is_refused_by_name():
    silent = NORMS | {Site(2, "resid_post"): SiteNorms(10, 0.0, 0.0, torch.zeros(WIDE))}
    crosscoder, sae = planned(TABLE | {"wiring": ["crosscoder", "sae"], "layers": [1, 2]}).coders[::2]
    for coder in (crosscoder, sae):
        with pytest.raises(UserError, match=r"activations at L02\.resid_post are all zero"):
            normaliser_of(coder, silent)
