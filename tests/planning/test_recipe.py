"""The papers' recipes, and how they are fitted to runs of another length: numbers worked out by hand."""

from typing import Any

import pytest

from panscope import coders
from panscope.planning import recipe
from panscope.planning.recipe import Recipe
from panscope.training.schedule import TrainingConfig
from panscope.types import UserError
from tests.support.paper_lm import planned

ALL = [(name, architecture) for name in recipe.names() for architecture in recipe.load(name).architectures()]


def fitted(name: str, steps: int, batch: int, architecture: str | None = None) -> dict[str, Any]:
    return recipe.load(name).fitted(steps, batch, architecture)


def test_gemma_scope_at_its_own_length_is_the_paper():
    """4 billion tokens in batches of 4,096 (section 3.2), and anything longer."""
    for steps in (976_562, 976_563, 4_000_000):
        fields = fitted("gemma_scope", steps, 4096)
        assert fields["architecture"] == "jumprelu"
        assert fields["learning_rate"] == 7e-5
        assert fields["adam_betas"] == [0.0, 0.999]
        assert (fields["lr_warmup"], fields["lr_warmup_from"], fields["lr_warmup_steps"]) == ("cosine", 0.1, 1000)
        assert (fields["sparsity_from"], fields["sparsity_warmup_steps"]) == (0.0, 10_000)
        assert (fields["bandwidth"], fields["threshold_init"]) == (0.001, 0.001)
        assert (fields["normaliser"], fields["pre_encoder_bias"], fields["decoder_norm"]) == ("unit_rms", True, "unit")
        assert fields["dead_window"] == 10_000_000


def test_gemma_scope_in_a_thousand_steps():
    fields = fitted("gemma_scope", 1000, 256)
    assert fields["lr_warmup_steps"] == 100  # a tenth
    assert fields["sparsity_warmup_steps"] == 200  # a fifth
    assert fields["dead_window"] == 25_600  # a tenth of 256,000 rows
    # The factor is 976.562 ** 0.75 = 174.7, and all three are at their bounds.
    assert (fields["learning_rate"], fields["bandwidth"], fields["threshold_init"]) == (5e-3, 0.1, 0.1)


def test_gemma_scope_between_the_two():
    """At 50,000 steps no warm-up is cut, but three fields are 19.53124 ** 0.75 = 9.2907 times the paper's."""
    fields = fitted("gemma_scope", 50_000, 4096)
    assert (fields["lr_warmup_steps"], fields["sparsity_warmup_steps"]) == (1000, 10_000)
    assert fields["dead_window"] == 10_000_000
    assert (fields["learning_rate"], fields["bandwidth"], fields["threshold_init"]) == (6.5e-4, 9.29e-3, 9.29e-3)


def test_the_gemma_scopes_differ_in_what_the_papers_say():
    """Appendix B changes two things for transcoders; Gemma Scope 2 changes the penalty and its warm-up."""
    one, transcoder, two = (
        fitted(name, 976_562, 4096) for name in ("gemma_scope", "gemma_scope_transcoder", "gemma_scope_2")
    )
    changed = {key for key in one if one[key] != transcoder[key]}
    assert changed == {"pre_encoder_bias", "encoder_init"}
    assert (transcoder["pre_encoder_bias"], transcoder["encoder_init"]) == (False, "own")
    assert {key for key in one if one[key] != two[key]} == {"sparsity_warmup_steps"}
    assert two["sparsity_warmup_steps"] == 50_000
    added = {"sparsity", "target_l0", "target_factor", "target_of", "frequency_penalty", "frequency_limit"}
    assert two.keys() - one.keys() == added
    assert (two["target_factor"], two["target_of"]) == ("target_l0 / 2", "row")


def test_the_rate_of_a_very_short_run_is_bounded():
    """8e-4 * sqrt(390,625 / 10) would be 0.158."""
    assert fitted("llama_scope", 10, 256)["learning_rate"] == 6e-3
    assert fitted("llama_scope", 100_000, 256)["learning_rate"] == 1.58e-3  # 8e-4 * 1.97642
    fields = fitted("gemma_scope", 10, 256)
    assert (fields["lr_warmup_steps"], fields["sparsity_warmup_steps"]) == (1, 2)
    assert fitted("gemma_scope", 1, 1)["dead_window"] == 1


def test_llama_scope_at_its_own_length_is_the_paper():
    """800 million tokens in batches of 2,048 (section 3.3): decay over a fifth, K-annealing over a tenth."""
    fields = fitted("llama_scope", 390_625, 2048)
    assert fields["learning_rate"] == 8e-4
    assert fields["lr_warmup_steps"] == 10_000
    assert fields["lr_decay_steps"] == 78_125
    assert fields["sparsity_warmup_steps"] == 39_062  # half to even of 39,062.5
    assert (fields["selection"], fields["decoder_norm"], fields["normaliser"]) == ("decoder_norm", "free", "sqrt_d")
    assert (fields["sparsity_from"], fields["convert_to"]) == ("d_in", "jumprelu")


def test_llama_scope_s_released_code_differs_from_its_text():
    text, code = (fitted(name, 390_625, 2048) for name in ("llama_scope", "llama_scope_released_code"))
    assert {key: code[key] for key in code if code[key] != text.get(key)} == {
        "loss": "batch_normed",
        "decoder_init_norm": 0.5,
        "adam_betas": [0.9, 0.9999],
        "lr_warmup_steps": 5000,
        "lr_end": 0.01,
        "sparsity_from": "d_in / 2",
        "clip_norm": 0.001,
    }


def test_the_multilayer_sae_at_its_own_length_is_the_paper():
    """1 billion tokens in batches of 131,072 (appendix A): a constant rate."""
    fields = fitted("multilayer_sae", 7_629, 131_072)
    assert (fields["learning_rate"], fields["adam_eps"], fields["adam_betas"]) == (1e-4, 6.25e-10, [0.9, 0.999])
    assert (fields["lr_warmup_steps"], fields.get("lr_decay_steps", 0), fields.get("clip_norm")) == (0, 0, None)
    assert (fields["normaliser"], fields["loss"], fields["encoder_bias"]) == ("standardise", "fvu_scalar", False)
    assert (fields["b_dec_init"], fields["decoder_norm"], fields["precision"]) == (
        "geometric_median",
        "unit",
        "float16",
    )
    assert (fields["auxk_coefficient"], fields["auxk"], fields["dead_window"]) == (1 / 32, 256, 10_000_000)
    assert fitted("multilayer_sae", 100, 4096)["learning_rate"] == 8.73e-4  # 1e-4 * sqrt(76.29)


def test_relu_at_its_own_length():
    relu = fitted("anthropic_relu", 200_000, 4096)
    assert (relu["learning_rate"], relu["lr_decay_steps"], relu["sparsity_warmup_steps"]) == (5e-5, 40_000, 10_000)
    assert relu["clip_norm"] == 1.0


def test_saebench_at_its_own_length():
    """500 million tokens in batches of 2,048."""
    for architecture in recipe.load("saebench").architectures():
        fields = fitted("saebench", 244_140, 2048, architecture)
        assert fields["architecture"] == architecture
        assert (fields["learning_rate"], fields["lr_warmup_steps"], fields["lr_decay_steps"]) == (3e-4, 1000, 48_828)
        momentum, clipped = fields["adam_betas"][0] > 0, fields.get("clip_norm") == 1.0
        assert momentum == ("topk" in architecture or architecture == "matryoshka")
        assert clipped == (architecture != "gated")
    assert fitted("saebench", 1_000_000, 2048)["learning_rate"] == 3e-4


def test_saebench_s_matryoshka_has_five_nested_prefixes():
    """Groups of 1/32, 1/16, 1/8, 1/4 and 1/2 + 1/32 of the width."""
    assert fitted("saebench", 1000, 2048, "matryoshka")["prefixes"] == [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0]


def test_a_variant_is_laid_over_the_fields_and_the_first_is_the_default():
    saebench = recipe.load("saebench")
    assert saebench.architectures()[0] == "topk"
    assert set(saebench.architectures()) == {"topk", "batchtopk", "matryoshka", "jumprelu", "gated"}
    assert saebench.fitted(1000, 256) == saebench.fitted(1000, 256, "topk")
    jumprelu = saebench.fitted(1000, 256, "jumprelu")
    assert jumprelu["target_of"] == "batch"
    assert "selection" not in jumprelu


def test_a_rule_touches_only_fields_that_are_there():
    """saebench bounds the running threshold's window and lets the bandwidth grow; TopK has neither."""
    window = fitted("saebench", 1000, 256, "batchtopk")["threshold_window"]
    assert window == 50  # a twentieth of 1,000 steps, not of 256,000 rows
    topk = fitted("saebench", 1000, 256, "topk")
    assert not {"threshold_window", "bandwidth", "threshold_init", "sparsity_warmup_steps"} & topk.keys()
    assert fitted("saebench", 1000, 256, "gated")["sparsity_warmup_steps"] == 200
    # 0.001 * sqrt(244.14) = 0.01562
    assert fitted("saebench", 1000, 256, "jumprelu")["bandwidth"] == 1.56e-2


def test_a_variant_wins_over_the_fields():
    read = Recipe.read(
        {
            "name": "made_up",
            "source": "nowhere",
            "fields": {"a": 1, "b": 2},
            "variants": {"second": {"b": 3}, "first": {"b": 4, "c": 5}},
            "short_run": {"reference_steps": 1, "power": 0, "grows": {}},
        },
        "test",
    )
    assert read.fitted(10, 10) == {"a": 1, "b": 3, "architecture": "second"}
    assert read.fitted(10, 10, "first") == {"a": 1, "b": 4, "c": 5, "architecture": "first"}


def test_an_architecture_that_a_recipe_has_not_is_told_those_it_has():
    with pytest.raises(UserError, match="'relu' does not go with recipe 'saebench', which is for topk, batchtopk, m"):
        fitted("saebench", 1000, 256, "relu")
    with pytest.raises(UserError, match="'topk' does not go with recipe 'gemma_scope', which is for jumprelu: use "):
        fitted("gemma_scope", 1000, 256, "topk")


@pytest.mark.parametrize(("name", "architecture"), ALL)
def test_every_field_of_a_recipe_belongs_to_its_architecture_or_to_training(name: str, architecture: str):
    known = {*TrainingConfig.model_fields, *coders.config_type(architecture).model_fields, "convert_to"}
    fields = fitted(name, 1000, 256, architecture)
    assert fields.keys() <= known
    assert not fields.keys() & {"d_in", "d_out", "width"}


@pytest.mark.parametrize("name", recipe.names())
def test_every_rule_of_a_recipe_is_about_a_field_it_has(name: str):
    loaded = recipe.load(name)
    fields = {key for architecture in loaded.architectures() for key in loaded.fitted(1000, 256, architecture)}
    assert {*loaded.at_most, *loaded.short_run.grows} <= fields
    assert not loaded.shares.keys() & loaded.fields.keys()


@pytest.mark.parametrize(("name", "architecture"), ALL)
def test_a_longer_run_never_learns_faster(name: str, architecture: str):
    lengths = (1, 3, 10, 100, 1000, 10_000, 100_000, 300_000, 1_000_000, 10_000_000)
    rates = [fitted(name, steps, 1024, architecture)["learning_rate"] for steps in lengths]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == recipe.load(name).fields["learning_rate"]


@pytest.mark.parametrize(("name", "architecture"), ALL)
def test_fitting_changes_no_recipe(name: str, architecture: str):
    loaded = recipe.load(name)
    before = loaded.model_dump()
    loaded.fitted(10, 10, architecture)
    assert loaded.model_dump() == before


def test_an_unknown_recipe_is_told_the_known_ones():
    with pytest.raises(
        UserError, match=r"recipe 'gema_scope' is unknown: use one of anthropic_relu, gemma_scope, gemma_scope_2"
    ):
        recipe.load("gema_scope")


def test_what_was_fitted_is_said_once_with_the_reason():
    """The factor is (976,562 / 50,000) ** 0.75 = 9.2907; a field that the table sets is not fitted."""
    table = {"recipe": "gemma_scope", "width": 64, "sparsity": 1e-3, "layers": [0, 1], "learning_rate": 1e-3}
    (line,) = planned(table, tokens=50_000 * 256, train={"batch": 256}).fitted()
    assert line == (
        "recipe gemma_scope is fitted to 50,000 steps: bandwidth 0.001 -> 0.00929, threshold_init 0.001 -> 0.00929 "
        "(multiplied by (976,562 / 50,000) ^ 0.75, up to a bound); dead_window 10,000,000 -> 1,280,000 (limited to a "
        "share of the run); as_published = true (--as-published) keeps its own values"
    )


def test_as_published_takes_the_papers_values_whatever_the_length():
    table = {"recipe": "gemma_scope", "width": 64, "sparsity": 1e-3, "layers": 0, "as_published": True}
    short = planned(table, tokens=256 * 1000, train={"batch": 256})
    (one,) = short.coders
    assert short.fitted() == []
    assert (one.training.learning_rate, one.training.lr_warmup_steps, one.training.sparsity_warmup_steps) == (
        7e-5,
        1000,
        10_000,
    )
    assert one.coder.model_dump()["bandwidth"] == 0.001


def test_steps_given_as_a_share_of_the_run_are_published_as_such():
    """Llama Scope decays the rate over the last fifth, however long the run is."""
    table = {"recipe": "llama_scope", "width": 64, "sparsity": 8, "layers": 0, "as_published": True}
    (one,) = planned(table, tokens=256 * 1000, train={"batch": 256}).coders
    assert one.training.lr_decay_steps == 200


def test_a_planned_suite_says_nothing_and_stays_as_it_is():
    """That is what a resumed run reads."""
    first = planned({"recipe": "gemma_scope", "width": 64, "sparsity": 1e-3, "layers": 0}, tokens=256_000)
    again = planned(*first.suite.coders, tokens=256_000)
    assert first.fitted() and not again.fitted()
    assert again.suite.coders == first.suite.coders


def test_as_published_is_true_or_false():
    with pytest.raises(UserError, match="as_published is 'yes': expected true or false"):
        planned({"recipe": "gemma_scope", "width": 64, "sparsity": 1e-3, "as_published": "yes"})
