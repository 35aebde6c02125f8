"""What the papers claim of their recipes, on a small trained language model: L0 asked for, K-annealing, conversion.

The same at full small scale is `benchmarks/suites/ablations.toml`, its numbers in docs/LOG.md.
"""

from pathlib import Path
from typing import Any

import pytest

from panscope.events import Reporter
from panscope.planning.plan import SuiteConfig
from panscope.runs import stages

pytestmark = pytest.mark.soak
TOPK = {"width": 512, "sparsity": 16, "layers": 1, "precision": "float32"}
STANDARDISED = TOPK | {"recipe": "panscope_standardised", "architecture": "topk"}
LLAMA = TOPK | {"recipe": "llama_scope", "convert_to": "none"}
TABLES: list[dict[str, Any]] = [
    {"recipe": "panscope", "architecture": "jumprelu", "width": 512, "target_l0": 16, "layers": 1}
    | {"sites": ["resid_post", "attn_z", "mlp_out"]},
    STANDARDISED | {"convert_to": "none", "tag": "topk"},
    STANDARDISED | {"convert_to": "jumprelu", "tag": "converted"},
    LLAMA | {"tag": "annealed"},
    LLAMA | {"convert_to": "jumprelu", "tag": "annealed-converted"},
    LLAMA | {"sparsity_warmup_steps": 0, "tag": "not-annealed"},
    LLAMA | {"selection": "value", "decoder_norm": "unit", "tag": "unit-norm"},
]


@pytest.fixture(scope="module")
def results(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    text = [str(shared / "text" / name) for name in ("tinystories.jsonl", "tinystories_sampled.jsonl")]
    suite = {
        "tokens": 512_000,
        "model": {"path": str(shared / "models" / "stories260K"), "device": "cpu"},
        "data": {"text": text, "context": 256},
        "train": {"batch": 512},
        "eval": {"tokens": 20_000},
        "coders": TABLES,
    }
    found = stages.start(SuiteConfig.read(suite, "test"), tmp_path_factory.mktemp("runs") / "claims", Reporter())
    assert found is not None
    return found


@pytest.mark.parametrize("site", ["R", "Z", "M"])
def test_jumprelu_reaches_the_l0_it_is_asked_for(results: dict[str, dict[str, Any]], site: str) -> None:
    assert results[f"L01{site}-8x-jumprelu-t16"]["l0"] == pytest.approx(16, rel=0.1)


def test_one_threshold_takes_the_place_of_topk(results: dict[str, dict[str, Any]]) -> None:
    """Llama Scope, Figure 11: the same L0; the error rises, and less so where rows are standardised."""
    rises = []
    for before, after in (("topk", "converted"), ("annealed", "annealed-converted")):
        topk, converted = (results[f"L01R-8x-topk-k16-{tag}"] for tag in (before, after))
        assert converted["l0"] == pytest.approx(topk["l0"], rel=0.03)
        rises.append(converted["fvu"] / topk["fvu"])
    assert rises[0] < min(rises[1], 1.1)


def test_fewer_latents_sleep_with_k_annealing(results: dict[str, dict[str, Any]]) -> None:
    """Llama Scope, Figure 12."""
    annealed, not_annealed = (results[f"L01R-8x-topk-k16-{tag}"] for tag in ("annealed", "not-annealed"))
    assert annealed["dead_fraction"] < 0.01 < not_annealed["dead_fraction"]


def test_free_decoder_norms_do_better_than_unit_ones(results: dict[str, dict[str, Any]]) -> None:
    """Llama Scope, appendix: its ablation of the decoder's norms."""
    free, unit = (results[f"L01R-8x-topk-k16-{tag}"] for tag in ("annealed", "unit-norm"))
    assert free["fvu"] < unit["fvu"]
