"""Tiny language models with random weights, one for each model type, and the trained ones of the shared folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel

VOCABULARY = 40
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = LLAMA_LIKE | {"head_dim": 8, "sliding_window": 4, "layer_types": SLIDING, "query_pre_attn_scalar": 8}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _gemma3_with_images() -> transformers.PretrainedConfig:
    vision = VISION | {"image_size": 8, "patch_size": 4}
    return transformers.Gemma3Config(text_config=GEMMA, vision_config=vision, mm_tokens_per_image=4)  # pyright: ignore


# Head widths that differ from hidden_size / heads are on purpose: attn_z is then not as wide as the residual stream.
CONFIGS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=24, n_layer=3, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        **{k: v for k, v in LLAMA_LIKE.items() if k != "num_key_value_heads"}, use_parallel_residual=True
    ),
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "smollm3": lambda: transformers.SmolLM3Config(**LLAMA_LIKE),
    "gemma2": lambda: transformers.Gemma2Config(**GEMMA),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**GEMMA),
    "gemma3": _gemma3_with_images,
}
TRAINED = ("stories260K", "TinyStories-656K", "tinygpt-shakespeare")


def tiny_model(config: Any) -> Any:
    """A random model whose norms have random gains and biases too, so that a forgotten gain shows."""
    torch.manual_seed(7)
    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))])}
    backend = Tokenizer(WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def make_lm() -> Callable[[str], LanguageModel]:
    """Makes the tiny model of a model type."""
    return lambda model_type: LanguageModel(tiny_model(CONFIGS[model_type]()), tiny_tokenizer())


@pytest.fixture(scope="session")
def save_tiny() -> Callable[..., Path]:
    """Writes the tiny model of a model type into a folder, as Hugging Face does."""

    def save(model_type: str, folder: Path) -> Path:
        tiny_model(CONFIGS[model_type]()).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session", params=[*CONFIGS, *TRAINED])
def lm(request: pytest.FixtureRequest, make_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    """Every model type, then every trained model."""
    if request.param in CONFIGS:
        return make_lm(request.param)
    shared: Path = request.getfixturevalue("shared")
    return load(LanguageModelConfig(path=str(shared / "models" / request.param), device="cpu"))


@pytest.fixture
def llama(make_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    """One family is enough for what no family changes."""
    return make_lm("llama")


@pytest.fixture(scope="session")
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """[3, 9] token ids and their mask: the second sequence is padded on the right."""
    token_ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(11))
    attention_mask = torch.ones(3, 9, dtype=torch.bool)
    attention_mask[1, 6:] = False
    return token_ids, attention_mask
