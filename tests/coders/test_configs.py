"""The mistakes one can make in a coder's configuration, each answered by one sentence."""

from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.auxk import AuxKConfig
from panscope.types import UserError

GOOD: dict[str, Any] = {"d_in": 4, "d_out": 4, "width": 8, "sparsity": 2, "prefixes": ()}
"""Eight latents are too few for Matryoshka's own prefixes."""
every_architecture = pytest.mark.parametrize("architecture", coders.ARCHITECTURES)


def refuse(architecture: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        coders.config_type(architecture).read(GOOD | fields, "suite.toml")
    assert str(caught.value).startswith("suite.toml: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"'vanilla' is unknown.*relu, topk, batchtopk, matryoshka, jumprelu, gated"):
        coders.config_type("vanilla")


@every_architecture
@pytest.mark.parametrize("field", ["d_in", "d_out", "width", "sparsity", "decoder_init_norm"])
def test_sizes_are_above_zero(architecture: str, field: str) -> None:
    refuse(architecture, {field: 0}, rf"'?{field}'? is 0")
    refuse(architecture, {field: -1}, rf"'?{field}'? is -1")


@every_architecture
def test_unknown_and_missing_keys(architecture: str) -> None:
    refuse(architecture, {"sparsty": 3}, "'sparsty' is unknown; did you mean 'sparsity'")
    with pytest.raises(UserError, match="'width' is missing"):
        coders.config_type(architecture).read({"d_in": 4, "d_out": 4, "sparsity": 2}, "suite.toml")


@every_architecture
def test_fractional_sizes_and_other_choices(architecture: str) -> None:
    refuse(architecture, {"width": 8.5}, "width is 8.5")
    refuse(architecture, {"decoder_norm": "none"}, r"decoder_norm is 'none'.*'unit'.*'free'")
    refuse(architecture, {"encoder_init": "tied"}, r"encoder_init is 'tied'")


def test_k_is_a_whole_number_up_to_the_width() -> None:
    refuse("topk", {"sparsity": 9}, r"sparsity \(K\) 9 is above the width 8")
    refuse("topk", {"sparsity": 2.5}, r"sparsity \(K\) 2.5 is not a whole number")
    refuse("topk", {"sparsity": 0.5}, r"sparsity \(K\) 0.5 is not a whole number")
    assert coders.config_type("topk").read(GOOD | {"sparsity": 8}, "suite.toml").sparsity == 8


def test_the_sentence_about_k_does_not_repeat_the_whole_table() -> None:
    with pytest.raises(UserError) as caught:
        coders.config_type("topk").read(GOOD | {"sparsity": 9}, "suite.toml")
    assert "d_in" not in str(caught.value)


@every_architecture
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(architecture: str, value: float) -> None:
    """TOML can write inf and nan."""
    refuse(architecture, {"sparsity": value}, "sparsity")
    refuse(architecture, {"decoder_init_norm": value}, "decoder_init_norm")


@pytest.mark.parametrize("field", ["bandwidth", "threshold_init"])
def test_jumprelu_widths_and_thresholds_are_above_zero(field: str) -> None:
    refuse("jumprelu", {field: 0}, f"{field} is 0")


@every_architecture
@pytest.mark.parametrize("d_out", [1, 5])
def test_a_pre_encoder_bias_needs_equal_widths(architecture: str, d_out: int) -> None:
    """With d_out = 1 nothing would fail: the single bias would be subtracted everywhere."""
    refuse(architecture, {"d_out": d_out, "pre_encoder_bias": True, "encoder_init": "own"}, "pre_encoder_bias")


@every_architecture
@pytest.mark.parametrize("d_out", [1, 5])
def test_a_transposed_start_needs_equal_widths(architecture: str, d_out: int) -> None:
    """With d_out = 1 nothing would fail by itself: the single weight would be repeated."""
    fields = GOOD | {"d_out": d_out, "encoder_init": "transpose"}
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        coder = coders.build(coders.config_type(architecture).read(fields, "suite.toml"))
        coder.initialise(torch.Generator().manual_seed(0))


SELECTING = ("topk", "batchtopk", "matryoshka")


@pytest.mark.parametrize("architecture", SELECTING)
def test_auxk_settings_need_auxk(architecture: str) -> None:
    refuse(architecture, {"auxk": 4}, "auxk and auxk_bias need an auxk_coefficient above 0")
    refuse(architecture, {"auxk_bias": True}, "auxk and auxk_bias need an auxk_coefficient above 0")
    refuse(architecture, {"auxk_coefficient": -0.1}, "auxk_coefficient is -0.1")
    refuse(architecture, {"auxk_coefficient": 1, "auxk": 0}, "auxk is 0")
    refuse(architecture, {"selection": "norm"}, "selection is 'norm'")


@pytest.mark.parametrize(("d_in", "width", "expected"), [(768, 4096, 512), (2304, 9999, 1024), (64, 20, 20), (1, 8, 1)])
def test_auxk_left_out_is_the_power_of_two_near_half_the_width(d_in: int, width: int, expected: int) -> None:
    """Gao et al.: 512 for the 768 dimensions of GPT-2 small; never more than there are latents."""
    fields = {"d_in": d_in, "d_out": d_in, "width": width, "sparsity": 2, "auxk_coefficient": 1}
    config = coders.config_type("topk").read(fields, "suite.toml")
    assert isinstance(config, AuxKConfig)
    assert config.auxk_latents() == expected
    assert config.replace(auxk=3).auxk_latents() == 3


def test_multi_topk_and_the_threshold_window() -> None:
    refuse("topk", {"multi_coefficient": -1}, "multi_coefficient is -1")
    refuse("topk", {"multi_factor": 1}, "multi_factor is 1")
    refuse("batchtopk", {"threshold_window": 0}, "threshold_window is 0")
    refuse("batchtopk", {"multi_coefficient": 1}, "'multi_coefficient' is unknown")


@pytest.mark.parametrize(
    ("architecture", "field"),
    [
        ("topk", "target_l0"),
        ("gated", "target_l0"),
        ("relu", "target_l0"),
        ("jumprelu", "auxk_coefficient"),
        ("gated", "auxk_coefficient"),
        ("relu", "selection"),
        ("jumprelu", "selection"),
        ("topk", "threshold_window"),
        ("gated", "bandwidth"),
    ],
)
def test_a_setting_of_another_architecture_is_refused(architecture: str, field: str) -> None:
    refuse(architecture, {field: 1}, f"the key '{field}' is unknown")


def test_jumprelu_targets_and_frequencies() -> None:
    refuse("jumprelu", {"target_l0": 8}, "target_l0 8 is not below the width 8")
    refuse("jumprelu", {"target_l0": 0}, "target_l0 is 0")
    refuse("jumprelu", {"target_l0": 2, "target_factor": 0}, "target_factor is 0")
    refuse("jumprelu", {"target_of": "token"}, "target_of is 'token'")
    refuse("jumprelu", {"frequency_penalty": -1}, "frequency_penalty is -1")
    refuse("jumprelu", {"frequency_limit": 0}, "frequency_limit is 0")
    refuse("jumprelu", {"frequency_limit": 1.5}, "frequency_limit is 1.5")


@every_architecture
@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.5, 1), (0.75, 0.5, 1), (0.01, 1), (0, 1), (-0.5, 1), (0.5, 1, 1.5)])
def test_prefixes_rise_to_the_whole_width(architecture: str, shares: tuple[float, ...]) -> None:
    refuse(architecture, {"prefixes": shares}, "prefixes .* must be rising shares of the width 8")


@every_architecture
def test_prefixes_are_shares_of_the_width(architecture: str) -> None:
    config = coders.config_type(architecture).read(GOOD | {"prefixes": (0.25, 0.6, 1)}, "suite.toml")
    assert config.prefix_ends() == [2, 5, 8]
    assert config.replace(prefixes=()).prefix_ends() == [8]


def test_matryoshkas_own_prefixes_are_those_of_saebench() -> None:
    fields = {name: value for name, value in GOOD.items() if name != "prefixes"} | {"width": 65536}
    config = coders.config_type("matryoshka").read(fields, "suite.toml")
    assert config.prefix_ends() == [2048, 6144, 14336, 30720, 65536]


@every_architecture
def test_decoder_norm_and_its_start_agree(architecture: str) -> None:
    refuse(architecture, {"decoder_init_norm": 0.5}, "decoder_init_norm is 0.5, but decoder_norm is 'unit'")
    free = GOOD | {"decoder_init_norm": 0.5, "decoder_norm": "free"}
    assert coders.config_type(architecture).read(free, "suite.toml").decoder_init_norm == 0.5


@every_architecture
@pytest.mark.parametrize("start", ["transpose", "transpose_matched"])
def test_another_output_width_needs_an_encoder_of_its_own(architecture: str, start: str) -> None:
    refuse(architecture, {"d_out": 5, "encoder_init": start}, f"encoder_init is '{start}'.*use 'own'")
