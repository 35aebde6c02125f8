"""The mistakes one can make in a coder's configuration, each answered by one sentence."""

from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.wiring import Wiring
from panscope.types import ActivationBatch, Site, UserError

GOOD: dict[str, Any] = {"d_in": 4, "d_out": 4, "width": 8, "sparsity": 2}
every_architecture = pytest.mark.parametrize("architecture", coders.ARCHITECTURES)


def refuse(architecture: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        coders.config_type(architecture).read(GOOD | fields, "suite.toml")
    assert str(caught.value).startswith("suite.toml: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_names_those_that_exist() -> None:
    with pytest.raises(UserError, match=r"'gated' is unknown.*relu, topk, jumprelu"):
        coders.config_type("gated")


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


def test_a_wiring_reads_and_writes_sites_as_text() -> None:
    fields = {"wiring": "transcoder", "reads": "L01.mlp_in", "predicts": "L01.mlp_out"}
    wiring = Wiring.read(fields, "suite.toml")
    assert (wiring.reads, wiring.predicts) == (Site(1, "mlp_in"), Site(1, "mlp_out"))
    assert wiring.sites() == {wiring.reads, wiring.predicts}
    assert wiring.model_dump() == fields
    with pytest.raises(UserError, match=r"reads.*'mlp' is unknown"):
        Wiring.read(fields | {"reads": "L01.mlp"}, "suite.toml")


def test_an_sae_predicts_what_it_reads_and_a_transcoder_does_not() -> None:
    with pytest.raises(UserError, match="predicts"):
        Wiring.read({"wiring": "sae", "reads": "L01.mlp_in", "predicts": "L01.mlp_out"}, "suite.toml")
    with pytest.raises(UserError, match="predicts"):
        Wiring.read({"wiring": "transcoder", "reads": "L01.mlp_in", "predicts": "L01.mlp_in"}, "suite.toml")


def test_the_rows_of_a_wiring() -> None:
    x, y, number = torch.randn(3, 4), torch.randn(3, 5), torch.arange(3)
    batch = ActivationBatch({Site(1, "mlp_in"): x, Site(1, "mlp_out"): y}, number, number, number)
    wiring = Wiring(wiring="transcoder", reads=Site(1, "mlp_in"), predicts=Site(1, "mlp_out"))
    assert wiring.rows(batch)[0] is x
    assert wiring.rows(batch)[1] is y
