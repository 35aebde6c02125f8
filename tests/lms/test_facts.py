"""Facts of language models: derived counts against the hub's published totals and against transformers' own modules."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from panscope import builtin
from panscope.lms.facts import ModelFacts, built_in_facts, facts_of
from panscope.lms.load import LanguageModelConfig
from panscope.lms.model import LanguageModel
from panscope.types import SITE_KINDS, Site, UserError

PUBLISHED = {
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-2-9b-it": 9_241_705_984,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b-pt": 999_885_952,
    "google/gemma-3-4b-pt": 4_300_079_472,
    "google/gemma-3-12b-pt": 12_187_325_040,
    "google/gemma-3-27b-pt": 27_432_406_640,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "openai-community/gpt2": 124_439_808,
}
"""Sizes of the safetensors files on the hub, including the image encoder of models that have one."""
PYTHIA = {
    "70m": (70_426_624, 18_915_328),
    "160m": (162_322_944, 85_056_000),
    "410m": (405_334_016, 302_311_424),
    "1b": (1_011_781_632, 805_736_448),
    "1.4b": (1_414_647_808, 1_208_602_624),
    "2.8b": (2_775_208_960, 2_517_652_480),
}
"""Pythia's model cards: all parameters, and those outside the two embeddings."""
CONFIGS: dict[str, Callable[..., Any]] = {
    "gpt2": transformers.GPT2Config,
    "gpt_neox": transformers.GPTNeoXConfig,
    "llama": transformers.LlamaConfig,
    "gemma2": transformers.Gemma2Config,
    "gemma3": transformers.Gemma3TextConfig,
}


pytestmark = pytest.mark.usefixtures("no_network")


def facts_at(path: str | Path) -> ModelFacts:
    return facts_of(LanguageModelConfig(path=str(path)))


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_totals_are_the_published_ones(name: str, total: int):
    assert facts_at(name).parameters == total


@pytest.mark.parametrize("size", PYTHIA)
@pytest.mark.parametrize("suffix", ["", "-deduped"])
def test_pythias_totals_are_those_of_its_model_cards(size: str, suffix: str):
    total, outside_embeddings = PYTHIA[size]
    found = facts_at(f"EleutherAI/pythia-{size}{suffix}")
    assert found.parameters == total
    assert found.parameters - 2 * found.vocabulary * found.d_model == outside_embeddings


def test_every_model_of_the_table_is_checked():
    pythias = {f"EleutherAI/pythia-{size}{suffix}" for size in PYTHIA for suffix in ("", "-deduped")}
    assert set(built_in_facts()) == {*PUBLISHED, *pythias}


def transformers_config(shape: dict[str, Any]) -> Any:
    """transformers' own configuration for a shape of models.toml."""
    sizes = {"num_hidden_layers": "layers", "hidden_size": "d_model", "num_attention_heads": "heads"}
    sizes |= {"intermediate_size": "mlp", "vocab_size": "vocabulary", "max_position_embeddings": "context"}
    if shape["family"] == "gpt2":
        sizes = {"n_layer": "layers", "n_embd": "d_model", "n_head": "heads", "n_inner": "mlp"}
        sizes |= {"vocab_size": "vocabulary", "n_positions": "context"}
    if shape["family"] not in ("gpt2", "gpt_neox"):
        sizes |= {"num_key_value_heads": "kv_heads", "head_dim": "head_dim"}
    fields = {theirs: shape[ours] for theirs, ours in sizes.items()}
    return CONFIGS[shape["family"]](**fields, tie_word_embeddings=shape["tied"])


@pytest.mark.parametrize(
    "name", [name for name in sorted(built_in_facts()) if "-deduped" not in name and "-it" not in name]
)
def test_counts_are_those_of_transformers_modules(name: str):
    """Built on the meta device; the text model alone, for models that also have an image encoder."""
    shape = tomllib.loads((builtin.MODEL_FACTS).read_text())["models"][name]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers_config(shape))
    found = facts_at(name)
    text = sum(parameter.numel() for parameter in model.parameters())
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | transformers.Conv1D)]
    assert found.matmul_parameters == sum(weight.numel() for weight in matrices)
    assert found.parameters == text + _images(name, shape)
    assert found.vocabulary == model.get_output_embeddings().weight.shape[0]
    head_dim = shape["head_dim"]
    assert found.heads_width == shape["heads"] * head_dim
    if shape["family"] in ("gpt2", "gpt_neox"):
        assert found.heads_width == found.d_model


def _images(name: str, shape: dict[str, Any]) -> int:
    """Parameters of the image encoder and the projection, as transformers builds them."""
    if "vision" not in shape:
        return 0
    vision = transformers.SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
        image_size=896, patch_size=14, vision_use_head=False,
    )  # fmt: skip
    with torch.device("meta"):
        tower = transformers.AutoModel.from_config(vision)
    return sum(parameter.numel() for parameter in tower.parameters()) + 1152 * shape["d_model"] + 1152


def test_gemma_2_heads_are_not_as_wide_as_the_residual_stream():
    found = facts_at("google/gemma-2-2b")
    assert found.width(Site(3, "attn_z")) == 2048
    assert {found.width(Site(3, kind)) for kind in SITE_KINDS if kind != "attn_z"} == {2304}


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "gemma2", "gemma3_text", "gemma3"])
def test_a_folder_is_counted_without_its_weights(
    model_type: str, save_tiny: Callable[[str, Path], Path], make_lm: Callable[[str], LanguageModel], tmp_path: Path
):
    folder = save_tiny(model_type, tmp_path / "lm")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    lm, found = make_lm(model_type), facts_at(folder)
    assert found.parameters == sum(parameter.numel() for parameter in lm.model.parameters())
    assert (found.n_layers, found.d_model, found.context) == (lm.n_layers, lm.d_model, lm.context)
    for kind in SITE_KINDS:
        assert found.width(Site(1, kind)) == lm.width(Site(1, kind))


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
def test_matmul_parameters_are_what_a_pass_multiplies_by(
    model_type: str, save_tiny: Callable[[str, Path], Path], make_lm: Callable[[str], LanguageModel], tmp_path: Path
):
    """Two FLOPs per token and weight, and 4 T^2 H of attention per layer, as torch counts them in a real pass."""
    found = facts_at(save_tiny(model_type, tmp_path / "lm"))
    lm, T = make_lm(model_type), 7
    lm.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        lm.model(torch.arange(3, 3 + T)[None], use_cache=False)
    attention = found.n_layers * 4 * T * T * found.heads_width
    assert counter.get_total_flops() - attention - _rotary(counter) == 2 * T * found.matmul_parameters


def _rotary(counter: FlopCounterMode) -> int:
    """The angles of rotary position embeddings, whose products involve no weights."""
    counts = counter.get_flop_counts()
    return sum(sum(by_op.values()) for name, by_op in counts.items() if name.endswith("rotary_emb"))


def test_the_built_in_model_is_known():
    found = facts_at("panscope://demo")
    assert (found.n_layers, found.d_model, found.context) == (4, 128, 256)


def test_a_folder_wins_over_the_table(
    save_tiny: Callable[[str, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_tiny("llama", tmp_path / "google" / "gemma-2-2b")
    monkeypatch.chdir(tmp_path)
    assert facts_at("google/gemma-2-2b").n_layers == 3


@pytest.mark.parametrize("path", ["./nowhere", "panscope://big"])
def test_a_model_that_is_not_there_is_one_sentence(path: str):
    with pytest.raises(UserError) as caught:
        facts_at(path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)


def test_a_family_nobody_supports_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(UserError, match="model type 'opt' is not supported"):
        facts_at(tmp_path)


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"layer 26 of site 'L26\.resid_post' does not exist: this model has 26 layers"):
        facts_at("google/gemma-2-2b").width(Site(26, "resid_post"))
