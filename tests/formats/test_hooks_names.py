"""Translation of site names to those of other tools, and back."""

import json
from pathlib import Path

import pytest

from panscope.config import read_toml
from panscope.formats import ImportedCoder
from panscope.formats.site_names import (
    exported_names,
    find_family,
    hookpoint,
    lens_name,
    module_path,
    site_of_hookpoint,
    site_of_lens_name,
    site_of_module_path,
    stated_sites,
)
from panscope.lms.facts import TABLE
from panscope.lms.families import FAMILIES, ModelFamily, family_of
from panscope.types import SITE_KINDS, Site
from tests.support.made_coders import MakeCoder

GPT2, NEOX, LLAMA, GEMMA = (family_of(name) for name in ("gpt2", "gpt_neox", "llama", "gemma2"))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("kind", SITE_KINDS)
def test_every_name_leads_back_to_its_site(kind: str, family: ModelFamily) -> None:
    site = Site(13, kind)
    assert site_of_lens_name(lens_name(site)) == site
    assert site_of_module_path(module_path(site, family), family) == site
    point = hookpoint(site, family)
    if point is not None:
        assert site_of_hookpoint(point, family) == site
    assert (point is None) == (kind in ("attn_z", "mlp_in", "mlp_in_no_gain"))


@pytest.mark.parametrize(
    ("site", "family", "lens", "path", "point"),
    [
        ("L03.resid_post", NEOX, "blocks.3.hook_resid_post", "gpt_neox.layers.3.output", "layers.3"),
        ("L03.mlp_out", GPT2, "blocks.3.hook_mlp_out", "transformer.h.3.mlp.output", "h.3.mlp"),
        ("L03.attn_out", GPT2, "blocks.3.hook_attn_out", "transformer.h.3.attn.c_proj.output", "h.3.attn.c_proj"),
        ("L12.attn_z", GEMMA, "blocks.12.attn.hook_z", "model.layers.12.self_attn.o_proj.input", None),
        (
            "L12.mlp_out",
            GEMMA,
            "blocks.12.hook_mlp_out",
            "model.layers.12.post_feedforward_layernorm.output",
            "layers.12.post_feedforward_layernorm",
        ),
        ("L00.mlp_in", LLAMA, "blocks.0.mlp.hook_in", "model.layers.0.mlp.input", None),
    ],
)
def test_the_names_are_the_others(site: str, family: ModelFamily, lens: str, path: str, point: str | None) -> None:
    found = Site.parse(site)
    assert (lens_name(found), module_path(found, family), hookpoint(found, family)) == (lens, path, point)


def test_other_names_of_the_same_tensor() -> None:
    assert site_of_lens_name("blocks.8.hook_resid_pre") == Site(7, "resid_post")
    assert site_of_module_path("model.layers.4.pre_feedforward_layernorm.output", GEMMA) == Site(4, "mlp_in")
    assert site_of_module_path("gpt_neox.layers.3.mlp") == Site(3, "mlp_out")
    assert site_of_hookpoint("layers.3.mlp", LLAMA, end="input") == Site(3, "mlp_in")


@pytest.mark.parametrize(
    "name",
    ["blocks.0.hook_resid_pre", "hook_embed", "blocks.3.hook_mlp_in", "blocks.x.hook_mlp_out", "blocks.3", "", "../x"],
)
def test_a_hook_that_is_no_site_of_ours(name: str) -> None:
    assert site_of_lens_name(name) is None


def test_a_path_on_which_families_differ_needs_the_family() -> None:
    path = "model.layers.3.mlp.output"
    assert site_of_module_path(path) is None
    assert site_of_module_path(path, LLAMA) == Site(3, "mlp_out")
    assert site_of_module_path(path, GEMMA) is None
    norm = "model.layers.3.post_attention_layernorm.output"
    assert site_of_module_path(norm) is None
    assert site_of_module_path(norm, LLAMA) == Site(3, "mlp_in")
    assert site_of_module_path(norm, GEMMA) == Site(3, "attn_out")
    assert site_of_hookpoint("layers.3.mlp") is None
    assert site_of_hookpoint("h.3.mlp") == Site(3, "mlp_out")
    for wrong in ("model.layers.3.other.output", "model.layers.output", "layers.3", "", "model.layers.99999.output"):
        assert site_of_module_path(wrong, LLAMA) is None


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt2-small", "GPT-2"),
        ("EleutherAI/pythia-70m-deduped", "GPT-NeoX"),
        ("meta-llama/Llama-3.1-8B", "Llama"),
        ("gemma-2-2b", "Gemma 2"),
        ("google/gemma-3-270m", "Gemma 3"),
        ("google/gemma-3-1b-pt", "Gemma 3"),
        ("google/gemma-3-12b-pt", "Gemma 3 with images"),
        ("Qwen/Qwen2.5-0.5B", "Llama"),
        ("Qwen/Qwen3-4B-Instruct-2507", "Llama"),
        ("meta-llama/Llama-2-7b-chat-hf", "Llama"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Llama"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "Llama"),
        ("HuggingFaceTB/SmolLM3-3B-Base", "Llama"),
        ("google/gemma-2-9b-it", "Gemma 2"),
        ("mine", None),
        (None, None),
        # Other architectures under a name that begins like that of one we support, or holds it.
        ("google/gemma-2b", None),
        ("gemma-2b-it", None),
        ("google/codegemma-2b", None),
        ("google/paligemma2-3b-pt-224", None),
        ("google/gemma-3n-E2B-it", None),
        ("meta-llama/Llama-3.2-11B-Vision", None),
        ("meta-llama/Llama-4-Scout-17B-16E", None),
        ("Qwen/Qwen2-VL-2B-Instruct", None),
        ("Qwen/Qwen2.5-Omni-7B", None),
        ("Qwen/Qwen2-57B-A14B", None),
        ("Qwen/Qwen3-30B-A3B", None),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", None),
        ("mistralai/Mistral-Small-3.1-24B-Base-2503", None),
        ("pythia-70m/llava", None),
    ],
)
def test_the_family_by_a_name(model: str | None, family: str | None) -> None:
    found = find_family(model)
    assert (found.name if found else None) == family


def test_the_family_of_every_model_in_our_table() -> None:
    table = read_toml(TABLE)["models"]
    for name, fields in table.items():
        shape = table[fields.get("same_as", name)]
        is_text = shape["family"] == "gemma3" and "vision" not in shape
        wanted = "gemma3_text" if is_text else shape["family"]
        assert find_family(name) == family_of(wanted), name


def test_the_family_by_a_folder_or_a_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert find_family(str(tmp_path)) == GPT2
    assert find_family("gpt2", "llama") == LLAMA
    assert find_family("gpt2", "bert") is None


def test_what_everything_exported_carries(make_coder: MakeCoder) -> None:
    about = {"model": "gpt2", "source": "runs/mine"}
    names = exported_names(ImportedCoder(make_coder("relu", predicts=Site(3, "mlp_out")), about))
    assert names["hook_name"] == "blocks.3.mlp.hook_in"
    assert names["hf_hook_name_out"] == "transformer.h.3.mlp.output"
    assert names["panscope"]["about"] == about
    assert stated_sites(names) == (Site(3, "mlp_in"), Site(3, "mlp_out"))
    several = exported_names(
        ImportedCoder(make_coder("relu", sites=(Site(0, "resid_post"), Site(1, "resid_post"))), {})
    )
    assert [entry["hook_name"] for entry in several["panscope"]["reads"]] == [
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]
    assert several["hf_hook_name"] is None
