"""The built-in suites, planned from the models' shapes alone: the papers' cells, typed here from the papers."""

from collections import Counter
from typing import Any, NamedTuple

import pytest

from panscope import builtin
from panscope.config import read_toml
from panscope.lms.facts import facts_of
from panscope.planning.plan import Plan, SuiteConfig, plan

BILLION = 1_000_000_000
MEMORY = 80 << 30
MLSAE = {
    "mlsae-pythia-70m": ("EleutherAI/pythia-70m-deduped", 6, 512),
    "mlsae-pythia-160m": ("EleutherAI/pythia-160m-deduped", 12, 768),
    "mlsae-pythia-410m": ("EleutherAI/pythia-410m-deduped", 24, 1024),
    "mlsae-pythia-1b": ("EleutherAI/pythia-1b-deduped", 16, 2048),
    "mlsae-pythia-1.4b": ("EleutherAI/pythia-1.4b-deduped", 24, 2048),
    "mlsae-pythia-2.8b": ("EleutherAI/pythia-2.8b-deduped", 32, 2560),
    "mlsae-gemma-2-2b": ("google/gemma-2-2b", 26, 2304),
    "mlsae-llama-3.2-3b": ("meta-llama/Llama-3.2-3B", 28, 3072),
    "mlsae-gpt2-small": ("openai-community/gpt2", 12, 768),
}
"""Suite -> the model, its layers and the width of its residual stream."""


LLAMA_SCOPE = ("llama-scope-8b", "llama-scope-8b-128x", "llama-scope-8b-vanilla")


class Cell(NamedTuple):
    """One cell of a table: a site of a layer at one width, with the tokens trained on."""

    site: str
    layer: int
    log2_width: int
    tokens: int


def planned(name: str) -> Plan:
    suite = SuiteConfig.read(read_toml(builtin.SUITES / f"{name}.toml"), name)
    return plan(suite, facts_of(suite.model), MEMORY)


def nominal(tokens: int, batch: int) -> int:
    """The tokens as whole batches."""
    return tokens // batch * batch


def cells(found: Plan) -> Counter[Cell]:
    """Cell -> how many coders of different sparsity it has."""
    counted: Counter[Cell] = Counter()
    for coder in found.coders:
        wiring = coder.wiring
        site = "->".join(dict.fromkeys(site.kind for site in (*wiring.reads, *wiring.predicts)))
        width = coder.coder.width
        assert width & (width - 1) == 0
        counted[Cell(site, wiring.reads[0].layer, width.bit_length() - 1, coder.steps * found.batch)] += 1
    return counted


def table_1(*rows: tuple[list[str], Any, int, float, int]) -> Counter[Cell]:
    """Rows of (sites, layers, log2 of the width, billions of tokens, SAEs a cell), as cells."""
    return Counter(
        {
            Cell(site, layer, width, nominal(round(billions * BILLION), 4096)): each
            for sites, layers, width, billions, each in rows
            for site in sites
            for layer in layers
        }
    )


SUBLAYERS = ["attn_z", "mlp_out", "resid_post"]
R, TC = ["resid_post"], ["mlp_in_no_gain->mlp_out"]
GEMMA_SCOPE = {
    "gemma-scope-2b": table_1(
        (SUBLAYERS, range(26), 14, 4, 5),
        (R, [12], 15, 8, 6),
        (SUBLAYERS, range(26), 16, 8, 5),
        (R, [12], 17, 8, 6),
        (R, [12], 18, 8, 6),
        (R, [12], 19, 8, 6),
        (R, [5, 12, 19], 20, 16, 6),
        (TC, range(26), 14, 4, 1),
    ),
    "gemma-scope-9b": table_1(
        (SUBLAYERS, range(42), 14, 4, 6),
        (R, [20], 15, 8, 3),
        (R, [20], 16, 8, 3),
        (SUBLAYERS, range(42), 17, 8, 6),
        (R, [20], 18, 8, 3),
        (R, [20], 19, 8, 3),
        (R, [9, 20, 31], 20, 16, 6),
    )
    + table_1((R, [20], 14, 4, 2), (R, [20], 17, 8, 2)),
    "gemma-scope-27b": table_1((R, [10, 22, 34], 17, 8, 6)),
    "gemma-scope-9b-it": table_1((R, [9, 20, 31], 14, 4, 5), (R, [9, 20, 31], 17, 8, 5)),
}


@pytest.mark.parametrize("name", GEMMA_SCOPE)
def test_gemma_scope_s_suites_are_its_table_1(name: str) -> None:
    assert cells(planned(name)) == GEMMA_SCOPE[name]


def test_gemma_scope_s_suites_have_about_as_many_coders_as_were_released() -> None:
    """862 with four on the embedding, 1,520, 18 and 30 were released: within 2 %."""
    found = {name: sum(counted.values()) for name, counted in GEMMA_SCOPE.items()}
    released = {"gemma-scope-2b": 862 - 4, "gemma-scope-9b": 1520, "gemma-scope-27b": 18, "gemma-scope-9b-it": 30}
    assert found == {"gemma-scope-2b": 848, "gemma-scope-9b": 1546, "gemma-scope-27b": 18, "gemma-scope-9b-it": 30}
    for name, number in found.items():
        assert abs(number - released[name]) <= 0.02 * released[name]


def test_gemma_scope_sweeps_lambda_around_the_two_values_the_paper_names() -> None:
    for name in GEMMA_SCOPE:
        lambdas = [coder.coder.sparsity for coder in planned(name).coders]
        assert {6e-4, 1e-3} <= set(lambdas)
        assert min(lambdas) >= 1e-4
        assert max(lambdas) <= 2e-3


def test_gemma_scope_trains_as_the_paper_says() -> None:
    """Every coder is long enough for the paper's own numbers; transcoders start and see as appendix B has it."""
    found = planned("gemma-scope-2b")
    assert (found.batch, found.steps, found.suite.data.context) == (4096, 16 * BILLION // 4096, 1024)
    for coder in found.coders:
        fields = coder.coder.model_dump()
        assert (coder.training.learning_rate, fields["bandwidth"], fields["threshold_init"]) == (7e-5, 0.001, 0.001)
        assert (coder.training.lr_warmup_steps, coder.training.sparsity_warmup_steps) == (1000, 10_000)
        is_sae = coder.wiring.wiring == "sae"
        assert coder.coder.pre_encoder_bias == is_sae
        assert coder.coder.encoder_init == ("transpose" if is_sae else "own")
        assert coder.training.normalise_target_by == "input"
        assert coder.coder.d_in == (2048 if coder.wiring.reads[0].kind == "attn_z" else 2304)


def test_llama_scope_is_256_coders() -> None:
    """32 layers x 4 positions x 2 widths; 32,768 latents on 0.8 billion tokens, 131,072 on 1.6; K = 50."""
    found = planned("llama-scope-8b")
    expected = Counter(
        {
            Cell(site, layer, width, nominal(tokens, 2048)): 1
            for site in ("resid_post", "attn_out", "mlp_out", "mlp_in_no_gain->mlp_out")
            for layer in range(32)
            for width, tokens in ((15, 800_000_000), (17, 1_600_000_000))
        }
    )
    assert cells(found) == expected
    assert len(found.coders) == 256
    assert (found.batch, found.suite.data.context) == (2048, 1024)
    for coder in found.coders:
        fields = coder.coder.model_dump()
        assert (fields["architecture"], fields["sparsity"], coder.convert_to) == ("topk", 50, "jumprelu")
        assert coder.training.learning_rate == 8e-4
        assert coder.training.sparsity_warmup_steps == round(0.1 * coder.steps)
        assert coder.training.sparsity_from == 4096
        assert fields["decoder_init_norm"] == (0.5 if fields["width"] == 32_768 else 0.25)


@pytest.mark.parametrize("name", MLSAE)
def test_a_multilayer_suite_is_one_coder_over_all_layers(name: str) -> None:
    """R = 64, k = 32, 1 billion tokens in batches of 131,072, sequences of 2,048 where the model has them."""
    model, n_layers, d_model = MLSAE[name]
    found = planned(name)
    (coder,) = found.coders
    assert found.suite.model.path == model
    assert (found.batch, found.steps, coder.steps) == (131_072, 7629, 7629)
    assert found.suite.data.packing == "stream"
    assert found.suite.data.context == (1024 if name == "mlsae-gpt2-small" else 2048)
    assert coder.wiring.wiring == "multilayer"
    assert [(site.layer, site.kind) for site in coder.wiring.reads] == [(n, "resid_post") for n in range(n_layers)]
    assert (coder.coder.d_in, coder.coder.width, coder.coder.sparsity) == (d_model, 64 * d_model, 32)
    assert (coder.training.learning_rate, coder.training.adam_eps) == (1e-4, 6.25e-10)
    assert (coder.training.normaliser, coder.training.loss, coder.training.precision) == (
        "standardise",
        "fvu_scalar",
        "float16",
    )


def test_the_multilayer_sweeps_vary_one_number_at_a_time() -> None:
    found = planned("mlsae-pythia-70m-sweeps")
    points = [(coder.coder.width // 512, coder.coder.sparsity) for coder in found.coders]
    assert len(set(points)) == len(points)
    assert {r for r, k in points if k == 32} == {8, 16, 32, 64, 128}
    assert {k for r, k in points if r == 64} == {16, 32, 64, 128, 256, 512}
    assert all(r == 64 or k == 32 for r, k in points)


def test_no_other_suite_is_built_in() -> None:
    known = {*GEMMA_SCOPE, *MLSAE, *LLAMA_SCOPE, "mlsae-pythia-70m-sweeps", "demo"}
    assert {path.stem for path in builtin.SUITES.glob("*.toml")} == known


@pytest.mark.parametrize(
    ("names", "tokens"), [(GEMMA_SCOPE, 2048 * 1024), (LLAMA_SCOPE, 50_000_000), (MLSAE, 1_000_000)]
)
def test_the_papers_evaluation_goes_with_their_suites(names: Any, tokens: int) -> None:
    assert {planned(name).suite.eval.tokens for name in names} == {tokens}


def test_documents_are_wrapped_in_chat_turns_for_the_tuned_model() -> None:
    """Gemma Scope section 4.5."""
    chat = planned("gemma-scope-9b-it").suite.data.chat
    assert chat is not None and chat.content == "all" and chat.response is None
    assert (chat.user, chat.model) == ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n")


def test_llama_scope_mixes_its_rows_in_a_pool() -> None:
    assert {planned(name).suite.activations.shuffle for name in LLAMA_SCOPE} == {"pool"}


def test_the_widest_row_of_llama_scopes_launcher() -> None:
    found = planned("llama-scope-8b-128x")
    assert {coder.coder.width for coder in found.coders} == {128 * 4096}
    assert {coder.training.learning_rate for coder in found.coders} == {2e-4}
    assert found.steps * found.batch == 3_200_000_000


def test_the_relu_baseline_has_llama_scopes_settings() -> None:
    found = planned("llama-scope-8b-vanilla")
    assert {coder.coder.architecture for coder in found.coders} == {"relu"}
    assert {(coder.wiring.reads[0].layer, coder.coder.width) for coder in found.coders} == {
        (layer, factor * 4096) for layer in (7, 15, 23) for factor in (8, 32)
    }
    for coder in found.coders:
        training = coder.training
        assert (training.learning_rate, training.adam_betas, training.lr_warmup_steps) == (8e-4, (0.9, 0.999), 10_000)
        assert training.lr_decay_steps == coder.steps // 5
        assert (training.normaliser, coder.coder.decoder_norm) == ("sqrt_d", "unit")
