"""How a case of `benchmarks.step.race` is written, and that the defaults are."""

import pytest

from benchmarks.step.case import CASES, Case
from benchmarks.step.contestants import module, tool_of
from panscope.types import UserError


@pytest.mark.parametrize("written", [*CASES, "relu:1x2x3@3"])
def test_a_case_is_written_as_it_is_read(written: str) -> None:
    assert str(Case.parse(written)) == written


def test_its_numbers_are_rows_width_latents_and_active() -> None:
    assert Case.parse("topk:4096x512x8192@32") == Case("topk", 4096, 512, 8192, 32)


@pytest.mark.parametrize(
    "written", ["gated:8x4x16@2", "topk:8x4x16", "topk:8x4@2", "topk:8x4x16@0", "topk:8x4x16@17", "topk:0x4x16@2", ""]
)
def test_what_is_no_case_is_one_sentence(written: str) -> None:
    with pytest.raises(UserError, match="case "):
        Case.parse(written)


def test_the_small_case_is_no_larger() -> None:
    assert Case.parse("jumprelu:4096x512x8192@50").small() == Case("jumprelu", 64, 32, 128, 4)
    tiny = Case.parse("topk:8x4x16@2")
    assert tiny.small() == tiny


def test_a_contestant_is_a_tool_and_its_setting() -> None:
    assert tool_of("saelens bf16 compiled") == "saelens"
    assert tool_of("sparsify") == "sparsify"
    with pytest.raises(UserError, match="tool 'saelense' is unknown: use one of panscope, "):
        module("saelense")
