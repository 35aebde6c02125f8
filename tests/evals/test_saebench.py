"""SAEBench's core results: numbers against loops over rows, the document against its public schema.

Shape letters: B rows, E width, F latents.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.evals.saebench import CoreRows
from panscope.formats.saebench import CoreAbout, core_file_name, core_output, write_core
from panscope.types import UserError

E, F = 5, 6
TOKENS, SEQUENCES = 1000, 21

ABOUT = CoreAbout(
    release="a-suite",
    coder="L03R/16k",
    model="pythia-70m-deduped",
    dataset="some text",
    context=128,
    batch=16,
    eval_id="0b1f7a4e-9a59-4c8a-9d0e-000000000000",
    milliseconds=1_767_225_600_000,
    sae={"architecture": "topk", "d_in": E, "d_sae": F, "hook_name": "blocks.3.hook_resid_post"},
)

NUMBERS: dict[str, float | None] = {
    "tokens": TOKENS,
    "sequences": SEQUENCES,
    "l0": 30.5,
    "l1": 101.25,
    "cosine": 0.93,
    "saebench_kl": 0.2,
    "saebench_kl_zero_ablated": 8.0,
    "saebench_ce_clean": 3.0,
    "saebench_ce_spliced": 3.5,
    "saebench_ce_zero_ablated": 13.0,
    "saebench_explained_variance": 0.91,
    "saebench_explained_variance_legacy": 0.85,
    "saebench_mse": 0.004,
    "saebench_l2_norm_in": 12.0,
    "saebench_l2_norm_out": 11.0,
    "saebench_l2_ratio": 0.92,
    "saebench_relative_reconstruction_bias": 1.01,
}

LATENTS = {
    "firings": torch.tensor([0, 5, 10, 50, 100, 400]),
    "sequences": torch.tensor([0, 5, 2, 20, 21, 21]),
    "encoder_bias": torch.tensor([0.5, -0.25, 0, 0, 0, 1]),
    "encoder_norm": torch.tensor([1.0, 2, 3, 4, 5, 6]),
    "encoder_decoder_cosine": torch.linspace(0.5, 1, F),
    "encoder_cosine": torch.linspace(0.1, 0.2, F),
    "decoder_cosine": torch.linspace(0.3, 0.8, F),
}


def one_of(kind: str, *names: str) -> dict[str, Any]:
    """An object of exactly these fields, all of one kind."""
    fields = {name: {"type": kind} for name in names}
    return {"type": "object", "properties": fields, "required": list(names), "additionalProperties": False}


DETAIL = one_of(
    "number",
    "index",
    "feature_density",
    "consistent_activation_heuristic",
    "encoder_bias",
    "encoder_norm",
    "encoder_decoder_cosine_sim",
    "max_decoder_cosine_sim",
    "max_encoder_cosine_sim",
)
DETAIL["properties"]["index"] = {"type": "integer"}

CATEGORIES = {
    "model_behavior_preservation": one_of("number", "kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"),
    "model_performance_preservation": one_of(
        "number", "ce_loss_score", "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae"
    ),
    "reconstruction_quality": one_of("number", "explained_variance", "explained_variance_legacy", "mse", "cossim"),
    "shrinkage": one_of("number", "l2_norm_in", "l2_norm_out", "l2_ratio", "relative_reconstruction_bias"),
    "sparsity": one_of("number", "l0", "l1"),
    "token_stats": one_of("integer", "total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"),
    "misc_metrics": one_of(
        "number",
        "freq_over_1_percent",
        "freq_over_10_percent",
        "normalized_freq_over_1_percent",
        "normalized_freq_over_10_percent",
        "average_max_encoder_cosine_sim",
        "average_max_decoder_cosine_sim",
        "frac_alive",
    ),
}
INTEGERS = ("batch_size_prompts", "n_eval_reconstruction_batches", "n_eval_sparsity_variance_batches", "context_size")
TEXTS = ("model_name", "llm_dtype", "dataset")
SWITCHES = (
    "compute_kl",
    "compute_ce_loss",
    "compute_l2_norms",
    "compute_sparsity_metrics",
    "compute_variance_metrics",
    "compute_featurewise_density_statistics",
    "compute_featurewise_weight_based_metrics",
    "exclude_special_tokens_from_reconstruction",
    "verbose",
)
CONFIG = {
    "type": "object",
    "properties": {
        **{name: {"type": "integer"} for name in INTEGERS},
        **{name: {"type": "string"} for name in TEXTS},
        **{name: {"type": "boolean"} for name in SWITCHES},
    },
    "required": [*INTEGERS, *TEXTS, *SWITCHES],
    "additionalProperties": False,
}
FIELDS: dict[str, dict[str, Any]] = {
    "eval_type_id": {"enum": ["core"]},
    "eval_config": CONFIG,
    "eval_id": {"type": "string"},
    "datetime_epoch_millis": {"type": "integer"},
    "eval_result_metrics": {
        "type": "object",
        "properties": CATEGORIES,
        "required": list(CATEGORIES),
        "additionalProperties": False,
    },
    "eval_result_details": {"type": "array", "items": DETAIL},
    "sae_bench_commit_hash": {"type": "string"},
    "sae_lens_id": {"type": ["string", "null"]},
    "sae_lens_release_id": {"type": ["string", "null"]},
    "sae_lens_version": {"type": ["string", "null"]},
    "sae_cfg_dict": {"type": ["object", "null"]},
    "eval_result_unstructured": {},
}
SCHEMA = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}

KINDS = {
    "object": lambda x: isinstance(x, dict),
    "array": lambda x: isinstance(x, list),
    "string": lambda x: isinstance(x, str),
    "boolean": lambda x: isinstance(x, bool),
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "number": lambda x: isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x),
    "null": lambda x: x is None,
}


def faults(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    """Where `value` breaks those rules of JSON schemas that are used here."""
    found = [f"{place}: {value!r}"] if "enum" in schema and value not in schema["enum"] else []
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(KINDS[kind](value) for kind in kinds):
        return [*found, f"{place}: {value!r} is not {kinds}"]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{place}.{name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            if name in known:
                found += faults(item, known[name], f"{place}.{name}")
            elif not schema.get("additionalProperties", True):
                found.append(f"{place}.{name} is unknown")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += faults(item, schema.get("items", {}), f"{place}[{index}]")
    return found


def read(path: Path) -> dict[str, Any]:
    """JSON that refuses NaN and infinity."""

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def written(
    path: Path, numbers: dict[str, float | None] = NUMBERS, latents: dict[str, Tensor] = LATENTS
) -> dict[str, Any]:
    write_core(path, core_output(numbers, latents, ABOUT))
    return read(path)


def test_the_file_follows_the_public_schema(tmp_path: Path):
    document = written(tmp_path / core_file_name(ABOUT))
    assert faults(document, SCHEMA) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a-suite_L03R_16k_eval_results.json"]


def test_the_check_of_the_schema_sees_faults():
    document = core_output(NUMBERS, LATENTS, ABOUT)
    del document["eval_id"]
    document["eval_result_metrics"]["sparsity"]["l0"] = {"mean": 3.0}
    document["eval_result_metrics"]["shrinkage"]["more"] = 1.0
    document["eval_result_details"][2]["index"] = 2.5
    assert len(faults(document, SCHEMA)) == 4


def test_numbers_land_where_saebench_has_them(tmp_path: Path):
    document = written(tmp_path / "core.json")
    metrics = document["eval_result_metrics"]
    assert metrics["model_behavior_preservation"] == {
        "kl_div_with_sae": 0.2,
        "kl_div_with_ablation": 8.0,
        "kl_div_score": pytest.approx(7.8 / 8),
    }
    assert metrics["model_performance_preservation"] == {
        "ce_loss_without_sae": 3.0,
        "ce_loss_with_sae": 3.5,
        "ce_loss_with_ablation": 13.0,
        "ce_loss_score": pytest.approx(9.5 / 10),
    }
    assert metrics["reconstruction_quality"] == {
        "explained_variance": 0.91,
        "explained_variance_legacy": 0.85,
        "mse": 0.004,
        "cossim": 0.93,
    }
    assert metrics["shrinkage"] == {
        "l2_norm_in": 12.0,
        "l2_norm_out": 11.0,
        "l2_ratio": 0.92,
        "relative_reconstruction_bias": 1.01,
    }
    assert metrics["sparsity"] == {"l0": 30.5, "l1": 101.25}
    assert set(metrics["token_stats"].values()) == {21 * 128}
    config = document["eval_config"]
    assert config["n_eval_reconstruction_batches"] == config["n_eval_sparsity_variance_batches"] == 2
    assert (document["sae_lens_release_id"], document["sae_lens_id"]) == ("a-suite", "L03R/16k")
    assert document["sae_cfg_dict"] == ABOUT.sae


def test_frequencies_come_from_firings(tmp_path: Path):
    # Densities 0, .005, .01, .05, .1, .4: the limits themselves are not above the limits.
    assert written(tmp_path / "core.json")["eval_result_metrics"]["misc_metrics"] == pytest.approx(
        {
            "frac_alive": 5 / 6,
            "freq_over_1_percent": 3 / 6,
            "freq_over_10_percent": 1 / 6,
            "normalized_freq_over_1_percent": 550 / 565,
            "normalized_freq_over_10_percent": 400 / 565,
            "average_max_encoder_cosine_sim": 0.15,
            "average_max_decoder_cosine_sim": 0.55,
        }
    )


def test_each_latent_has_its_entry(tmp_path: Path):
    details = written(tmp_path / "core.json")["eval_result_details"]
    assert [detail["index"] for detail in details] == list(range(F))
    assert details[3] == {
        "index": 3,
        "feature_density": 0.05,
        "consistent_activation_heuristic": 2.5,
        "encoder_bias": 0.0,
        "encoder_norm": 4.0,
        "encoder_decoder_cosine_sim": pytest.approx(0.8),
        "max_decoder_cosine_sim": pytest.approx(0.6),
        "max_encoder_cosine_sim": pytest.approx(0.16),
    }


def test_the_undefined_is_minus_one(tmp_path: Path):
    numbers = NUMBERS | {"saebench_kl_zero_ablated": 0.0, "saebench_ce_spliced": None, "cosine": math.nan}
    document = written(tmp_path / "core.json", numbers)
    metrics = document["eval_result_metrics"]
    assert metrics["model_behavior_preservation"]["kl_div_score"] == -1
    assert metrics["model_performance_preservation"]["ce_loss_with_sae"] == -1
    assert metrics["model_performance_preservation"]["ce_loss_score"] == -1
    assert metrics["reconstruction_quality"]["cossim"] == -1
    assert document["eval_result_details"][0]["consistent_activation_heuristic"] == -1
    assert faults(document, SCHEMA) == []


def test_latents_that_never_fire_have_no_share(tmp_path: Path):
    dead = LATENTS | {"firings": torch.zeros(F), "sequences": torch.zeros(F)}
    misc = written(tmp_path / "core.json", NUMBERS, dead)["eval_result_metrics"]["misc_metrics"]
    assert misc["frac_alive"] == misc["normalized_freq_over_1_percent"] == misc["freq_over_10_percent"] == 0


def test_a_missing_number_is_an_error():
    with pytest.raises(KeyError, match="saebench_kl"):
        core_output({name: x for name, x in NUMBERS.items() if name != "saebench_kl"}, LATENTS, ABOUT)


def test_facts_are_checked():
    with pytest.raises(UserError, match="batch is 0"):
        ABOUT.replace(batch=0)


def some_batches() -> list[tuple[Tensor, Tensor]]:
    """Three batches of unlike sizes whose rows are far from 0, with a tiny row among them."""
    g = torch.Generator().manual_seed(0)
    batches = []
    for rows in (12, 7, 20):
        y = torch.randn(rows, E, generator=g) + torch.tensor([0.6, -0.2, 0, 0.1, 0])
        batches.append((y, 0.9 * y + 0.1 * torch.randn(rows, E, generator=g)))
    batches[1][0][2] *= 1e-6
    return batches


def dot(u: list[float], v: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(u, v, strict=True))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def core_by_hand(batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """SAEBench's row metrics, one row at a time."""
    listed = [(y.double().tolist(), h.double().tolist()) for y, h in batches]
    rows: dict[str, list[float]] = {name: [] for name in ("mse", "legacy", "in", "out", "ratio")}
    error, square, entry, bias = [], [], [], []
    for ys, hs in listed:
        centre = [mean([y[e] for y in ys]) for e in range(E)]
        errors = [math.dist(y, h) ** 2 for y, h in zip(ys, hs, strict=True)]
        error.append(mean(errors))
        square.append(mean([dot(y, y) for y in ys]))
        entry += [mean([y[e] ** 2 for y in ys]) for e in range(E)]
        bias.append(mean([dot(h, h) for h in hs]) / mean([dot(y, h) for y, h in zip(ys, hs, strict=True)]))
        for y, h, wrong in zip(ys, hs, errors, strict=True):
            size = math.hypot(*y)
            rows["mse"].append(wrong / len(ys))
            rows["legacy"].append(1 - wrong / math.dist(y, centre) ** 2)
            rows["in"].append(size)
            rows["out"].append(math.hypot(*h))
            rows["ratio"].append(math.hypot(*h) / (1 if size < 1e-4 else size))
    return {
        "saebench_explained_variance": 1 - mean(error) / (mean(square) - mean(entry) ** 2),
        "saebench_explained_variance_legacy": mean(rows["legacy"]),
        "saebench_mse": mean(rows["mse"]),
        "saebench_l2_norm_in": mean(rows["in"]),
        "saebench_l2_norm_out": mean(rows["out"]),
        "saebench_l2_ratio": mean(rows["ratio"]),
        "saebench_relative_reconstruction_bias": mean(bias),
    }


def measured(batches: list[tuple[Tensor, Tensor]]) -> CoreRows:
    core = CoreRows()
    for y, y_hat in batches:
        core.update(y, y_hat)
    return core


def test_every_number_of_rows_is_its_definition():
    batches = some_batches()
    assert measured(batches).numbers() == pytest.approx(core_by_hand(batches), rel=1e-12)
    assert measured(batches).numbers().keys() < NUMBERS.keys()


@pytest.mark.parametrize("split", range(4))
def test_merged_batches_equal_one_pass(split: int):
    batches = some_batches()
    first, second = measured(batches[:split]), measured(batches[split:])
    before = second.state_dict()
    second.update(torch.zeros(0, E), torch.zeros(0, E))
    first.merge(second)
    assert first.numbers() == pytest.approx(measured(batches).numbers(), rel=1e-12)
    assert second.state_dict() == before


def test_a_saved_state_goes_on():
    batches = some_batches()
    resumed = CoreRows()
    resumed.load_state_dict(measured(batches[:2]).state_dict())
    resumed.update(*batches[2])
    assert resumed.numbers() == measured(batches).numbers()
