"""Plans: every number written out, the same when planned again, and one sentence for every mistake."""

import tomllib
from typing import Any

import pytest

from panscope.config import write_toml
from panscope.planning import recipe
from panscope.planning.plan import Plan, SuiteConfig
from panscope.types import Site, UserError
from tests.support.paper_lm import HEADS, LAYERS, PAPER_LM, WIDE, planned, suite

TABLE: dict[str, Any] = {"width": 64, "sparsity": 4, "layers": [1]}
CELLS = [(name, architecture) for name in recipe.names() for architecture in recipe.load(name).architectures()]
"""Every recipe with every architecture it is for."""
WIRINGS = ("sae", "transcoder", "multilayer", "crosscoder")
PER_ROW = ("multilayer_sae", "openai_topk", "panscope_standardised")
"""Recipes that standardise every row, which a transcoder cannot undo."""
WHERE = {
    "sae": {"layers": [1]},
    "transcoder": {"layers": [1]},
    "multilayer": {"layers": [[1, 2, 3]]},
    "crosscoder": {"layers": [[1, 2, 3]]},
}


def impossible(name: str, wiring: str) -> bool:
    """Two recipes take the loss in raw space, and a crosscoder's sites have no common size there."""
    raw = ("multilayer_sae", "panscope_standardised")
    return (wiring == "transcoder" and name in PER_ROW) or (wiring == "crosscoder" and name in raw)


POSSIBLE = [(*cell, wiring) for cell in CELLS for wiring in WIRINGS if not impossible(cell[0], wiring)]


def again(first: Plan) -> Plan:
    """The plan of what the run folder holds: through TOML text and back."""
    tables = tomllib.loads(write_toml(first.suite.model_dump(mode="json")))
    rest = SuiteConfig.read(tables, "suite.toml").model_dump(exclude={"coders"})
    return planned(*tables["coders"], **rest)


def names(*tables: dict[str, Any], **fields: Any) -> list[str]:
    return [coder.name for coder in planned(*tables, **fields).coders]


def decoder_init(name: str, architecture: str, d_in: int) -> float:
    by_width = name == "llama_scope" or (name.startswith("panscope") and architecture in ("topk", "batchtopk"))
    known = {"anthropic_relu": 0.1, "llama_scope_released_code": 0.5}
    return (2 * d_in / 64) ** 0.5 if by_width else known.get(name, 1.0)


@pytest.mark.parametrize(("name", "architecture", "wiring"), POSSIBLE)
def test_every_recipe_plans_in_every_wiring(name: str, architecture: str, wiring: str):
    table = TABLE | WHERE[wiring] | {"recipe": name, "architecture": architecture, "wiring": wiring}
    (one,) = planned(table).coders
    expected = recipe.load(name).fitted(1000, 256, architecture)
    assert (one.coder.architecture, one.steps) == (architecture, 1000)
    for field in ("learning_rate", "lr_warmup_steps", "lr_decay_steps", "sparsity_warmup_steps", "clip_norm"):
        assert getattr(one.training, field) == expected.get(field, 0 if "steps" in field else None), field
    assert one.training.adam_betas == tuple(expected["adam_betas"])
    assert one.training.dead_window == 25_600
    d_in = 3 * WIDE if wiring == "crosscoder" else WIDE
    assert (one.coder.d_in, one.coder.d_out, one.coder.width) == (d_in, d_in, 64)
    assert one.coder.decoder_init_norm == pytest.approx(decoder_init(name, architecture, d_in))
    assert one.coder.encoder_init == ("own" if wiring == "transcoder" else expected["encoder_init"])
    assert one.coder.pre_encoder_bias == (wiring != "transcoder" and expected["pre_encoder_bias"])
    assert one.convert_to == ("jumprelu" if name.startswith("llama_scope") else None)
    if wiring == "transcoder":
        assert (one.wiring.reads, one.wiring.predicts) == ((Site(1, "mlp_in_no_gain"),), (Site(1, "mlp_out"),))
    else:
        sites = tuple(Site(layer, "resid_post") for layer in (1, 2, 3)[: 1 if wiring == "sae" else 3])
        assert one.wiring.reads == one.wiring.predicts == sites
    assert again(planned(table)) == planned(table)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("name", recipe.names())
@pytest.mark.parametrize("tokens", [3_000, 777_777, 4_000_000_000])
def test_planning_a_planned_suite_changes_nothing(name: str, wiring: str, tokens: int):
    where = WHERE[wiring] | {"wiring": wiring, "recipe": name}
    if impossible(name, wiring):
        where = WHERE["sae"] | {"wiring": "sae", "recipe": name}
    several = "target_l0" if name == "gemma_scope_2" else "sparsity"
    tables = (
        TABLE | where | {several: [4, 7]},
        {"expansion": 1.7, "sparsity": 3, "tag": "b", "adam_betas": [0.5, 0.9], "recipe": name},
        TABLE | where | {"tokens": tokens // 2, "tag": "c"},
    )
    first = planned(*tables, tokens=tokens)
    second = again(first)
    assert second == first
    assert write_toml(second.suite.model_dump(mode="json")) == write_toml(first.suite.model_dump(mode="json"))
    assert again(second) == first


def test_a_planned_suite_leaves_nothing_open():
    """A resumed run must not depend on what recipes or defaults are later: every field of every coder is there."""
    first = planned(TABLE | {"recipe": "llama_scope"})
    (table,) = first.suite.coders
    one = first.coders[0]
    written = set(table)
    assert written >= set(type(one.training).model_fields)
    assert written >= set(type(one.coder).model_fields) - {"d_in", "d_out"}
    assert first.suite.data.context == 512
    written_out = {"batch": 256, "log_every": 20, "checkpoint_every": 200, "step_gib": 3.6, "kernels": "auto"}
    assert first.suite.train.model_dump() == written_out
    assert first.suite.activations.buffer_rows == 256_000


def test_a_changed_recipe_does_not_change_a_planned_suite(monkeypatch: pytest.MonkeyPatch):
    first = planned(TABLE | {"recipe": "gemma_scope"})
    load = recipe.load

    def other(name: str) -> recipe.Recipe:
        changed = load(name)
        fields = changed.fields | {"learning_rate": 0.5, "bandwidth": 9.0, "lr_warmup_steps": 1}
        return changed.replace(fields=fields, at_most={})

    monkeypatch.setattr(recipe, "load", other)
    assert planned(TABLE | {"recipe": "gemma_scope"}) != first
    assert again(first) == first


def test_a_grid_is_the_product_of_its_lists():
    table = {"sites": ["resid_post", "attn_z"], "layers": [0, 3], "width": [96, 192], "sparsity": [2, 4]}
    found = names(table)
    assert len(found) == len(set(found)) == 16
    assert {"L00R-3x-topk-k2", "L03R-6x-topk-k4", "L00Z-2x-topk-k2", "L03Z-4x-topk-k4"} <= set(found)


def test_all_layers_and_the_default_site_unless_said_otherwise():
    assert names({"width": 64, "sparsity": 2}) == [f"L{layer:02d}R-2x-topk-k2" for layer in range(LAYERS)]
    assert names({"width": 64, "sparsity": 2, "layers": "all"}) == names({"width": 64, "sparsity": 2})
    assert names({"width": 64, "sparsity": 2, "layers": 2}) == ["L02R-2x-topk-k2"]
    assert names({"width": 64, "sparsity": 2, "layers": 2, "wiring": "transcoder"}) == ["L02TC-2x-topk-k2"]


def test_the_architecture_alone_chooses_its_recipe():
    known = {"matryoshka": "saebench", "relu": "anthropic_relu"}
    for architecture in ("relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"):
        (table,) = planned(TABLE | {"architecture": architecture}).suite.coders
        assert (table["recipe"], table["architecture"]) == (known.get(architecture, "panscope"), architecture)
    (table,) = planned(TABLE).suite.coders
    assert (table["recipe"], table["architecture"]) == ("panscope", "topk")


def test_a_list_of_recipes_is_a_choice():
    assert names(TABLE | {"recipe": ["saebench", "gemma_scope"]}) == ["L01R-2x-topk-k4", "L01R-2x-jumprelu-l4"]


def test_the_width_may_be_a_multiple_of_the_input():
    first = planned({"sites": ["resid_post", "attn_z"], "layers": 0, "expansion": [2, 0.5], "sparsity": 1})
    assert [c.coder.width for c in first.coders] == [2 * WIDE, WIDE // 2, 2 * HEADS, HEADS // 2]


def test_a_pair_of_betas_is_one_value_and_a_list_of_pairs_a_choice():
    (one,) = planned(TABLE | {"adam_betas": [0.1, 0.9]}).coders
    assert one.training.adam_betas == (0.1, 0.9)
    pairs = [[0.0, 0.99], [0.9, 0.999]]
    two = planned(TABLE | {"adam_betas": pairs}).coders
    assert [c.training.adam_betas for c in two] == [(0.0, 0.99), (0.9, 0.999)]
    assert [c.name for c in two] == ["L01R-2x-topk-k4-adam_betas0_0.99", "L01R-2x-topk-k4-adam_betas0.9_0.999"]


@pytest.mark.parametrize(
    ("fields", "tags"),
    [
        ({"learning_rate": [1e-4, 2.5e-3]}, ["lr1e-4", "lr2.5e-3"]),
        ({"seed": [0, 1, 2]}, ["seed0", "seed1", "seed2"]),
        ({"recipe": ["llama_scope", "openai_topk"]}, ["llama_scope", "openai_topk"]),
        ({"learning_rate": [1e-3, 2e-3], "auxk_coefficient": [0.0, 0.03125]}, None),
        ({"pre_encoder_bias": [True, False]}, ["pre_encoder_bias", "no_pre_encoder_bias"]),
        ({"selection": ["value", "decoder_norm"]}, ["selectionvalue", "selectiondecoder_norm"]),
        ({"tag": "mine", "adam_eps": [1e-8, 1e-6]}, ["mine-adam_eps1e-8", "mine-adam_eps1e-6"]),
    ],
)
def test_a_list_of_any_field_is_a_grid(fields: dict[str, Any], tags: list[str] | None):
    """Names say in what their coders differ, and stay as they are when the plan is planned again."""
    tags = tags or [f"lr{rate}-auxk_coefficient{a}" for rate in ("1e-3", "2e-3") for a in ("0", "0.03125")]
    first = planned(TABLE | {"architecture": "topk"} | fields if "recipe" not in fields else TABLE | fields)
    assert sorted(c.name for c in first.coders) == sorted(f"L01R-2x-topk-k4-{tag}" for tag in tags)
    again = planned(*first.suite.coders)
    assert again.coders == first.coders and again.suite.coders == first.suite.coders


def test_a_seed_is_a_coders_own():
    one, other = planned(TABLE | {"seed": [3, 4]}).coders
    assert (one.seed, other.seed) == (3, 4)
    (neither,) = planned(TABLE).coders
    assert neither.seed is None
    with pytest.raises(UserError, match="seed is -1: expected a whole number, at least 0"):
        planned(TABLE | {"seed": -1})


def test_what_the_table_says_wins_over_recipe_and_wiring():
    table = TABLE | {"recipe": "gemma_scope", "learning_rate": 0.5, "lr_warmup_steps": 3, "bandwidth": 2}
    (one,) = planned(table).coders
    assert (one.training.learning_rate, one.training.lr_warmup_steps) == (0.5, 3)
    assert one.coder.model_dump()["bandwidth"] == 2
    (free,) = planned(
        TABLE | {"wiring": "transcoder", "sites": "mlp_in -> mlp_out", "encoder_init": "transpose"}
    ).coders
    assert free.coder.encoder_init == "transpose"


def test_llama_scopes_formulas():
    """Decoder norm sqrt(2 D / F); K from D, but never above the width."""
    many = planned({"recipe": "llama_scope", "layers": 0, "width": [256, 16], "sparsity": 8}).coders
    assert many[0].coder.decoder_init_norm == pytest.approx(0.5)
    assert [c.training.sparsity_from for c in many] == [32, 16]
    (unit,) = planned(
        {"recipe": "llama_scope", "layers": 0, "width": 256, "sparsity": 8, "decoder_norm": "unit"}
    ).coders
    assert unit.coder.decoder_init_norm == 1.0


def test_a_transcoder_may_read_and_predict_sites_of_other_widths():
    table = {"wiring": "transcoder", "sites": "attn_z -> attn_out", "layers": 0, "width": 96, "sparsity": 2}
    (one,) = planned(table).coders
    assert (one.coder.d_in, one.coder.d_out, one.name) == (HEADS, WIDE, "L00TCZA-2x-topk-k2")


@pytest.mark.parametrize(
    ("tokens", "batch", "steps"),
    [
        (1, 1, 1),  # fewer tokens than the smallest batch
        (200, 200, 1),
        (256, 256, 1),
        (2_000, 256, 7),
        (511_999, 256, 1999),
        (512_000, 512, 1000),
        (1_024_000, 1024, 1000),
        (2_000_000, 1024, 1953),
        (5_000_000, 4096, 1220),
        (4_000_000_000, 4096, 976_562),
    ],
)
def test_the_batch_leaves_a_thousand_steps_where_it_can(tokens: int, batch: int, steps: int):
    first = planned(TABLE, tokens=tokens)
    assert (first.batch, first.steps) == (batch, steps)


def test_the_buffer_holds_a_million_rows_or_a_quarter_of_the_memory():
    assert planned(TABLE, tokens=10_000_000).buffer_rows == 1_000_000
    everywhere = {"width": 64, "sparsity": 2, "sites": ["resid_post", "attn_z", "mlp_out"]}
    row_bytes = 4 * LAYERS * (WIDE + HEADS + WIDE)
    assert planned(everywhere, tokens=10_000_000, memory=1 << 30).buffer_rows == 2**28 // row_bytes
    assert planned(everywhere, tokens=10_000_000, memory=1 << 20).buffer_rows == 4096  # one batch
    halves = planned(everywhere, tokens=10_000_000, memory=1 << 30, model={"dtype": "bfloat16"})
    assert halves.buffer_rows == 2**28 // (row_bytes // 2)
    together = TABLE | {"wiring": ["multilayer", "crosscoder"], "layers": [[0, 1, 2]]}
    assert planned(together, tokens=10_000_000, memory=1 << 30).buffer_rows == min(10**6, 2**28 // (4 * 3 * WIDE))


def test_the_context_is_the_models_at_most_1024():
    assert planned(TABLE, lm=PAPER_LM.replace(context=4096)).suite.data.context == 1024
    assert planned(TABLE).suite.data.context == 512
    assert planned(TABLE, data={"context": 100}).suite.data.context == 100


def test_every_site_is_read_once():
    tables = TABLE | {"sites": ["mlp_out", "resid_post"]}, TABLE | {"wiring": "transcoder"}
    assert planned(*tables).sites() == [Site(1, "mlp_in_no_gain"), Site(1, "mlp_out"), Site(1, "resid_post")]


def refused(expected: str, *tables: dict[str, Any], **fields: Any) -> None:
    """One sentence: no line break, no full stop inside, no pydantic boilerplate."""
    with pytest.raises(UserError) as caught:
        planned(*tables, **fields)
    sentence = str(caught.value)
    assert expected in sentence
    assert "\n" not in sentence
    assert "For further information" not in sentence


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"widht": 64}, "the key 'widht' is unknown; did you mean 'width'?"),
        ({"d_in": 64}, "the key 'd_in' is unknown"),
        ({"architecture": "topkk"}, "architecture 'topkk' is unknown: use one of relu, topk, batchtopk, matryoshka"),
        ({"recipe": "gemma"}, "recipe 'gemma' is unknown: use one of anthropic_relu, gemma_scope"),
        (
            {"recipe": "gemma_scope", "architecture": "topk"},
            "architecture 'topk' does not go with recipe 'gemma_scope', which is for jumprelu",
        ),
        ({"sites": "resid_pre"}, "site kind 'resid_pre' is unknown: resid_pre is the resid_post of the layer before"),
        ({"sites": ["resid_post", "mlp"]}, "site kind 'mlp' is unknown"),
        ({"layers": 4}, "layer 4 does not exist: the model has 4 layers; choose from 0 to 3"),
        ({"layers": [0, -1]}, "layer -1 does not exist"),
        ({"layers": ["x"]}, "layer 'x' does not exist"),
        ({"layers": 1.0}, "layer 1.0 does not exist"),
        ({"layers": []}, "layers"),
        ({"wiring": "pair"}, "wiring is 'pair': use one of sae, transcoder, multilayer, crosscoder"),
        ({"sites": "mlp_in -> mlp_out"}, "names two sites, which wiring 'sae' cannot"),
        ({"wiring": "transcoder", "sites": "mlp_in"}, "names one site"),
        ({"wiring": "transcoder", "sites": "mlp_in -> nowhere"}, "site kind 'nowhere' is unknown"),
        ({"wiring": "transcoder", "pre_encoder_bias": True}, "pre_encoder_bias is true"),
        (
            {"wiring": "transcoder", "sites": "attn_z -> attn_out", "encoder_init": "transpose"},
            "encoder_init is 'transpose'",
        ),
        ({"width": 0}, "width is 0: input should be greater than 0"),
        ({"width": -4}, "width is -4"),
        ({"width": 1.5}, "width is 1.5"),
        ({"width": "many"}, "width is 'many'"),
        ({"width": 0, "recipe": "llama_scope"}, "width is 0"),
        ({"width": "many", "recipe": "llama_scope"}, "width is 'many'"),
        ({"width": [64, []]}, "width"),
        ({"width": []}, "'width' is an empty list"),
        ({"expansion": 2}, "give either 'width' (a number of latents) or 'expansion' (a multiple of 32)"),
        ({"sparsity": 65}, "sparsity (K) 65 is above the width 64"),
        ({"sparsity": 65, "recipe": "llama_scope"}, "sparsity (K) 65 is above the width 64"),
        ({"sparsity": 2.5}, "sparsity (K) 2.5 is not a whole number"),
        ({"sparsity": 0}, "sparsity is 0"),
        ({"sparsity": -1}, "sparsity is -1"),
        ({"sparsity": "low"}, "sparsity is 'low'"),
        ({"sparsity": "low", "recipe": "llama_scope"}, "sparsity is 'low'"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"lr_warmup": "square"}, "lr_warmup is 'square'"),
        ({"bandwidth": 0.1}, "bandwidth is 0.1, but architecture 'topk' has no bandwidth; it goes with jumprelu"),
        ({"adam_betas": [0.9]}, "adam_betas"),
        ({"adam_betas": []}, "adam_betas"),
        ({"adam_betas": 0.9}, "adam_betas"),
        ({"normaliser": "layer"}, "normaliser is 'layer'"),
        ({"convert_to": "relu"}, "convert_to is 'relu'"),
        ({"tag": 1}, "tag"),
        ({"tag": "../../elsewhere"}, "tag"),
        ({"tag": "a/b"}, "tag"),
    ],
)
def test_every_mistake_in_a_table_is_one_sentence(change: dict[str, Any], expected: str):
    refused(expected, TABLE | change)


@pytest.mark.parametrize("expansion", [0, -1, "8"])
def test_an_expansion_that_gives_no_width_is_refused(expansion: Any):
    refused("", {"expansion": expansion, "sparsity": 4})


def test_what_is_missing_is_said():
    refused("give either 'width'", {"sparsity": 4})
    refused("'sparsity' is missing", {"width": 64})
    refused("coders is missing")


@pytest.mark.parametrize("k", [64, 63])
def test_a_coder_that_can_never_be_converted_is_refused_before_it_is_trained(k: int):
    """With K = F no threshold keeps K latents a row."""
    table = TABLE | {"recipe": "llama_scope", "sparsity": k}
    if k == 63:
        assert planned(table).coders[0].convert_to == "jumprelu"
    else:
        refused("64", table)


@pytest.mark.parametrize("architecture", ["jumprelu", "relu"])
def test_only_topk_can_be_converted(architecture: str):
    """Not silently ignored."""
    refused("convert_to", TABLE | {"architecture": architecture, "convert_to": "jumprelu"})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"data": {"context": 513}}, "data.context 513 is longer than the model's 512 positions"),
        ({"tokens": 100, "train": {"batch": 101}}, "tokens 100 is below the batch of 101 rows"),
        ({"activations": {"buffer_rows": 255}}, "buffer_rows"),  # below the batch of 256
    ],
)
def test_every_mistake_in_the_suite_is_one_sentence(fields: dict[str, Any], expected: str):
    refused(expected, TABLE, **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": -5}, "tokens is -5"),
        ({"seed": -1}, "seed is -1"),
        ({"name": "../up"}, "name is '../up'"),
        ({"name": ""}, "name is ''"),
        ({"tokns": 5}, "the key 'tokns' is unknown; did you mean 'tokens'?"),
        ({"train": {"batch": 0}}, "train.batch is 0"),
        ({"train": {"bach": 1}}, "'train.bach' is unknown"),
        ({"model": "gpt2"}, "model is 'gpt2'"),
        ({"data": {"packing": "pairs"}}, "data.packing is 'pairs'"),
        ({"data": {"held_out": 1}}, "data.held_out is 1"),
        ({"activations": {"shuffle": "none"}}, "activations.shuffle is 'none'"),
        ({"eval": {"tokens": 0}}, "eval.tokens is 0"),
    ],
)
def test_a_suite_that_makes_no_sense_is_one_sentence(fields: dict[str, Any], expected: str):
    with pytest.raises(UserError) as caught:
        suite(TABLE, **fields)
    assert expected in str(caught.value)


def test_two_coders_of_one_name_are_refused_and_tags_tell_them_apart():
    refused("two coders are both named 'L01R-2x-topk-k4', and their tables do not differ in anything", TABLE, TABLE)
    refused("two coders are both named", TABLE | {"layers": [1, 1]})
    assert names(TABLE, TABLE | {"tag": "b"}) == ["L01R-2x-topk-k4", "L01R-2x-topk-k4-b"]


def test_a_choice_of_wirings_takes_the_default_sites_of_each():
    assert names(TABLE | {"wiring": ["sae", "transcoder"]}) == ["L01R-2x-topk-k4", "L01TC-2x-topk-k4"]
