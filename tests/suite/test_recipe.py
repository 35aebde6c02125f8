"""The papers' recipes, and how they are fitted to runs of another length: numbers worked out by hand."""

import pytest

from panscope.suite import recipe
from panscope.types import UserError


def test_gemma_scope_at_its_own_length_is_the_paper():
    """4 billion tokens in batches of 4,096 (section 3.2), and anything longer."""
    for steps in (976_562, 976_563, 4_000_000):
        fields = recipe.load("gemma_scope").fitted(steps, 4096)
        assert fields["architecture"] == "jumprelu"
        assert fields["learning_rate"] == 7e-5
        assert fields["adam_betas"] == [0.0, 0.999]
        assert (fields["lr_warmup"], fields["lr_warmup_from"], fields["lr_warmup_steps"]) == ("cosine", 0.1, 1000)
        assert (fields["sparsity_from"], fields["sparsity_warmup_steps"]) == (0.0, 10_000)
        assert (fields["bandwidth"], fields["threshold_init"]) == (0.001, 0.001)
        assert (fields["normaliser"], fields["pre_encoder_bias"], fields["decoder_norm"]) == ("unit_rms", True, "unit")
        assert fields["dead_window"] == 10_000_000


def test_gemma_scope_in_a_thousand_steps():
    fields = recipe.load("gemma_scope").fitted(1000, 256)
    assert fields["lr_warmup_steps"] == 100  # a tenth
    assert fields["sparsity_warmup_steps"] == 200  # a fifth
    assert fields["dead_window"] == 25_600  # a tenth of 256,000 rows
    # The factor is 976.562 ** 0.75 = 174.7, and all three are at their bounds.
    assert (fields["learning_rate"], fields["bandwidth"], fields["threshold_init"]) == (5e-3, 0.1, 0.1)


def test_gemma_scope_between_the_two():
    """At 50,000 steps no warm-up is cut, but three fields are 19.53124 ** 0.75 = 9.2907 times the paper's."""
    fields = recipe.load("gemma_scope").fitted(50_000, 4096)
    assert (fields["lr_warmup_steps"], fields["sparsity_warmup_steps"]) == (1000, 10_000)
    assert fields["dead_window"] == 10_000_000
    assert (fields["learning_rate"], fields["bandwidth"], fields["threshold_init"]) == (6.5e-4, 9.29e-3, 9.29e-3)


def test_the_rate_of_a_very_short_run_is_bounded():
    """8e-4 * sqrt(390,625 / 10) would be 0.158."""
    assert recipe.load("llama_scope").fitted(10, 256)["learning_rate"] == 6e-3
    assert recipe.load("llama_scope").fitted(100_000, 256)["learning_rate"] == 1.58e-3  # 8e-4 * 1.97642
    fields = recipe.load("gemma_scope").fitted(10, 256)
    assert (fields["lr_warmup_steps"], fields["sparsity_warmup_steps"]) == (1, 2)
    assert recipe.load("gemma_scope").fitted(1, 1)["dead_window"] == 1


def test_llama_scope_at_its_own_length_is_the_paper():
    """800 million tokens in batches of 2,048 (section 3.3): decay over a fifth, K-annealing over a tenth."""
    fields = recipe.load("llama_scope").fitted(390_625, 2048)
    assert fields["learning_rate"] == 8e-4
    assert fields["lr_warmup_steps"] == 10_000
    assert fields["lr_decay_steps"] == 78_125
    assert fields["sparsity_warmup_steps"] == 39_062  # half to even of 39,062.5
    assert (fields["selection"], fields["decoder_norm"], fields["normaliser"]) == ("decoder_norm", "free", "sqrt_d")
    assert (fields["sparsity_from"], fields["convert_to"]) == ("d_in", "jumprelu")


def test_relu_and_topk_at_their_own_lengths_and_longer():
    relu = recipe.load("relu_l1").fitted(200_000, 4096)
    assert (relu["learning_rate"], relu["lr_decay_steps"], relu["sparsity_warmup_steps"]) == (5e-5, 40_000, 10_000)
    topk = recipe.load("topk").fitted(244_140, 2048)
    assert (topk["learning_rate"], topk["lr_warmup_steps"], topk["lr_decay_steps"]) == (3e-4, 1000, 48_828)
    assert recipe.load("topk").fitted(1_000_000, 2048)["learning_rate"] == 3e-4


@pytest.mark.parametrize("name", recipe.names())
def test_a_longer_run_never_learns_faster(name: str):
    lengths = (1, 3, 10, 100, 1000, 10_000, 100_000, 300_000, 1_000_000, 10_000_000)
    rates = [recipe.load(name).fitted(steps, 1024)["learning_rate"] for steps in lengths]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == recipe.load(name).fields["learning_rate"]


@pytest.mark.parametrize("name", recipe.names())
def test_fitting_changes_no_recipe(name: str):
    loaded = recipe.load(name)
    before = loaded.model_dump()
    loaded.fitted(10, 10)
    assert loaded.model_dump() == before


def test_an_unknown_recipe_is_told_the_known_ones():
    with pytest.raises(
        UserError, match=r"recipe 'gema_scope' is unknown: use one of gemma_scope, llama_scope, relu_l1"
    ):
        recipe.load("gema_scope")
