"""Settings that contradict each other: one sentence that names the field and its value, before any weight is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from panscope.events import Reporter
from panscope.lms import load as loading
from panscope.planning.plan import SuiteConfig
from panscope.runs import stages
from panscope.types import UserError
from tests.support.paper_lm import planned

TABLE: dict[str, Any] = {"width": 64, "sparsity": 4, "layers": [1, 2]}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "topk", "target_l0": 32}, "target_l0 is 32, but architecture 'topk' has no target_l0"),
    ({"architecture": "gated", "target_l0": 32}, "target_l0 is 32, but architecture 'gated' has no target_l0"),
    ({"architecture": "jumprelu", "auxk": 32}, "auxk is 32, but architecture 'jumprelu' has no auxk; it goes with"),
    ({"architecture": "jumprelu", "auxk_coefficient": 0.03}, "auxk_coefficient is 0.03, but architecture 'jumprelu'"),
    ({"architecture": "relu", "bandwidth": 0.1}, "bandwidth is 0.1, but architecture 'relu' has no bandwidth"),
    ({"architecture": "batchtopk", "multi_coefficient": 0.1}, "multi_coefficient is 0.1, but architecture 'batchtopk'"),
    ({"architecture": "topk", "threshold_window": 10}, "threshold_window is 10, but architecture 'topk'"),
    ({"architecture": "topk", "auxk": 8, "auxk_coefficient": 0}, "auxk and auxk_bias need an auxk_coefficient above 0"),
    ({"architecture": "jumprelu", "target_l0": 64}, "target_l0 64 is not below the width 64"),
    ({"architecture": "jumprelu", "target_l0": 0}, "target_l0 is 0"),
    ({"architecture": "batchtopk", "sparsity": 65}, "sparsity (K) 65 is above the width 64"),
    ({"architecture": "matryoshka", "sparsity": 2.5}, "sparsity (K) 2.5 is not a whole number"),
    ({"architecture": "matryoshka", "prefixes": [0.5, 0.25, 1.0]}, "prefixes [0.5, 0.25, 1.0] must be rising shares"),
    ({"architecture": "topk", "prefixes": [0.5]}, "prefixes [0.5] must be rising shares"),
    ({"architecture": "topk", "prefixes": [0.001, 1.0]}, "prefixes [0.001, 1.0] must be rising shares"),
    ({"wiring": "transcoder", "normaliser": "standardise"}, "normaliser is 'standardise', but the output of a trans"),
    ({"wiring": "transcoder", "recipe": "multilayer_sae"}, "normaliser is 'standardise', but the output of a trans"),
    ({"wiring": "transcoder", "normaliser": "token_norm"}, "normaliser is 'token_norm', but the output of a trans"),
    ({"wiring": "transcoder", "pre_encoder_bias": True}, "pre_encoder_bias is true, but the b_dec of a transcoder"),
    ({"wiring": "crosscoder", "recipe": "multilayer_sae"}, "loss_space is 'raw', but the sites of a crosscoder"),
    *(
        ({"wiring": wiring, "skip": True}, f"skip is true, but wiring '{wiring}' could then copy its input")
        for wiring in ("sae", "multilayer", "crosscoder")
    ),
    ({"decoder_norm": "unit", "decoder_init_norm": 0.5}, "decoder_init_norm is 0.5, but decoder_norm is 'unit'"),
    ({"architecture": "batchtopk", "convert_to": "jumprelu"}, "convert_to is 'jumprelu', but architecture 'batchtopk'"),
    ({"architecture": "gated", "recipe": "multilayer_sae"}, "'gated' does not go with recipe 'multilayer_sae'"),
    ({"tokens": 63}, "tokens is 63: expected a whole number, at least one batch of 64 rows"),
    ({"wiring": "multilayer", "sites": "resid_post + attn_z"}, "joins sites, which wiring 'multilayer' cannot"),
    ({"wiring": "multilayer", "layers": [1]}, "wiring 'multilayer' needs several sites"),
    ({"average_decay": 1.0}, "average_decay is 1"),
    ({"clip_norm": 0}, "clip_norm is 0"),
    ({"precision": "int8"}, "precision is 'int8'"),
    ({"loss": "l2"}, "loss is 'l2'"),
    ({"b_dec_init": "mean"}, "b_dec_init is 'mean'"),
    ({"encoder_bias": "some"}, "encoder_bias is 'some'"),
    ({"wiring": "sae", "target_l0": 8, "recipe": "llama_scope"}, "target_l0 is 8, but architecture 'topk'"),
    ({"frequency_penalty": 0.1, "architecture": "topk"}, "frequency_penalty is 0.1, but architecture 'topk'"),
]  # fmt: skip
every_contradiction = pytest.mark.parametrize(("change", "expected"), CONTRADICTIONS)


@pytest.fixture(scope="module")
def weightless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three Llama blocks with heads wider than the residual stream: configuration, but no weights."""
    folder = tmp_path_factory.mktemp("weightless")
    sizes: dict[str, Any] = {"hidden_size": 16, "head_dim": 12, "intermediate_size": 24, "num_hidden_layers": 3}
    config = transformers.LlamaConfig(
        num_attention_heads=2, num_key_value_heads=2, vocab_size=40, max_position_embeddings=24, **sizes
    )
    config.save_pretrained(folder)
    return folder


@every_contradiction
def test_it_is_refused_before_any_weight_is_read(
    weightless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], expected: str
):
    """There is no weight file, no tokenizer and no text: only a plan that looks at none of them can get so far."""

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", never)
    monkeypatch.setattr(stages, "load", never)
    fields: dict[str, Any] = {
        "tokens": 6400,
        "model": {"path": str(weightless), "device": "cpu"},
        "data": {"text": [str(tmp_path / "nowhere.jsonl")]},
        "train": {"batch": 64},
        "coders": [TABLE | change],
    }
    with pytest.raises(UserError) as caught:
        stages.start(SuiteConfig.read(fields, "test"), tmp_path / "run", Reporter())
    sentence = str(caught.value)
    assert expected in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "run").exists()


def test_what_contradicts_nothing_gets_as_far_as_the_weights(weightless: Path, tmp_path: Path):
    """So the test above would not pass for any sentence at all."""
    fields = {"tokens": 6400, "model": {"path": str(weightless), "device": "cpu"}, "coders": [TABLE]}
    suite = SuiteConfig.read(fields, "test")
    plan = stages.planned_from(suite)
    assert [coder.coder.d_in for coder in plan.coders] == [16, 16]
    assert [path.name for path in weightless.iterdir()] == ["config.json"]
    with pytest.raises(UserError, match="cannot be loaded"):
        stages.start(suite, tmp_path / "run", Reporter())


def test_the_plan_of_a_model_that_is_too_large_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A trillion parameters, counted from their shapes."""
    sizes: dict[str, Any] = {
        "hidden_size": 2**16,
        "intermediate_size": 2**18,
        "num_hidden_layers": 16,
        "num_attention_heads": 256,
    }
    transformers.LlamaConfig(vocab_size=1000, max_position_embeddings=64, **sizes).save_pretrained(tmp_path)
    fields = {"model": {"path": str(tmp_path), "device": "cpu"}, "coders": [TABLE]}
    monkeypatch.setattr(loading, "load", None)
    plan = stages.planned_from(SuiteConfig.read(fields, "test"))
    assert [coder.coder.d_in for coder in plan.coders] == [2**16] * 2
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 2**16
    assert torch.get_default_device().type == "cpu"


@pytest.mark.parametrize(("change", "expected"), CONTRADICTIONS[:3])
def test_it_is_the_same_sentence_for_a_model_on_paper(change: dict[str, Any], expected: str):
    with pytest.raises(UserError) as caught:
        planned(TABLE | change)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "fine",
    [
        {"architecture": "jumprelu", "target_l0": 8, "sparsity": 0.1},
        {"architecture": "batchtopk", "auxk_coefficient": 0.1, "auxk": 4},
        {"architecture": "topk", "multi_coefficient": 0.1},
        {"architecture": "gated", "prefixes": [0.25, 1.0]},
        {"wiring": "transcoder", "skip": True},
        {"wiring": "crosscoder", "recipe": "openai_topk"},
        {"wiring": "multilayer", "recipe": "multilayer_sae"},
    ],
)
def test_what_goes_together_is_not_refused(fine: dict[str, Any]):
    assert planned(TABLE | fine).coders


def test_a_target_needs_no_coefficient():
    """SAEBench's is 1; and a coefficient that is given is kept."""
    table = {"width": 64, "layers": 1, "architecture": "jumprelu", "target_l0": 8, "recipe": "saebench"}
    assert planned(table).coders[0].coder.sparsity == 1
    assert planned(table | {"sparsity": 0.5}).coders[0].coder.sparsity == 0.5
