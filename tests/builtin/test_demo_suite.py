"""The built-in suite: what it trains, and that what it trains is good."""

from pathlib import Path
from typing import Any

import pytest

from panscope import builtin
from panscope.config import read_toml
from panscope.events import Reporter
from panscope.planning.plan import SuiteConfig
from panscope.runs import stages

DEMO = read_toml(builtin.SUITES / "demo.toml")


def test_the_demo_covers_every_layer_three_sites_and_two_architectures() -> None:
    planned = stages.planned_from(SuiteConfig.read(DEMO, "demo"))
    found = {(c.coder.architecture, c.wiring.reads[0].layer, c.wiring.reads[0].kind) for c in planned.coders}
    kinds = ("resid_post", "attn_z", "mlp_out")
    assert found == {(a, layer, kind) for a in ("topk", "jumprelu") for layer in range(4) for kind in kinds}
    assert len(planned.coders) == len(found)


@pytest.mark.soak
def test_the_demo_trains_good_coders(tmp_path: Path) -> None:
    """Under 10 % dead latents, and clearly better than a run of a tenth of the tokens."""

    def run(tokens: int) -> dict[str, dict[str, Any]]:
        suite = SuiteConfig.read(DEMO | {"tokens": tokens}, "demo")
        results = stages.start(suite, tmp_path / str(tokens), Reporter())
        assert results is not None
        return results

    tenth, whole = run(DEMO["tokens"] // 10), run(DEMO["tokens"])
    for name, result in whole.items():
        assert result["dead_fraction"] < 0.1, name
        assert result["loss_recovered"] > 0.75, name
        assert result["fvu"] < 0.25, name
    for field in ("fvu", "delta_loss"):
        ratios = sorted(result[field] / tenth[name][field] for name, result in whole.items() if "topk" in name)
        assert ratios[-1] < 0.95, field
        assert ratios[len(ratios) // 2] < 0.8, field
