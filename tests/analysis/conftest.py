"""Every family's tiny model, those with trained weights, and tokens for them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attached import MODELS
from torch import Tensor

from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel


@pytest.fixture(scope="session")
def make_lm() -> Callable[[str], LanguageModel]:
    """Makes the tiny model of a model type."""
    return lambda kind: LanguageModel(MODELS.tiny_model(MODELS.CONFIGS[kind]()), MODELS.tiny_tokenizer())


@pytest.fixture(scope="session", params=[*MODELS.CONFIGS, *MODELS.TRAINED])
def lm(request: pytest.FixtureRequest, make_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    """Every model type, then every trained model."""
    if request.param in MODELS.CONFIGS:
        return make_lm(request.param)
    shared: Path = request.getfixturevalue("shared")
    return load(LanguageModelConfig(path=str(shared / "models" / request.param), device="cpu"))


@pytest.fixture
def llama(make_lm: Callable[[str], LanguageModel]) -> LanguageModel:
    """One family is enough for what no family changes."""
    return make_lm("llama")


@pytest.fixture(scope="session")
def tokens() -> tuple[Tensor, Tensor]:
    """[3, 9] token ids and their mask: the second sequence is padded on the right."""
    token_ids = torch.randint(3, MODELS.VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(11))
    attention_mask = torch.ones(3, 9, dtype=torch.bool)
    attention_mask[1, 6:] = False
    return token_ids, attention_mask
