"""What looks wrong in results is said in one sentence each, with the worst coder; what is usual is not spoken of."""

from pathlib import Path
from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders import files
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.runs.result_warnings import warnings_of_results
from panscope.runs.run import Run
from panscope.storage.json_lines import JsonLines
from panscope.types import Site

FINE = {"l0": 12.0, "dead_fraction": 0.1, "dense_fraction": 0.02}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run")


def add(run: Run, name: str, architecture: str, width: int = 16) -> None:
    config = coders.config_type(architecture).read({"d_in": 8, "d_out": 8, "width": width, "sparsity": 4}, "test")
    coder = coders.build(config).initialise(torch.Generator().manual_seed(0))
    sites = (Site(1, "resid_post"),)
    wired = WiredCoder(Wiring(wiring="sae", reads=sites, predicts=sites), coder)
    files.save(run.coder_folder(name), wired, coder, {})


def said(run: Run, results: dict[str, dict[str, Any]]) -> list[str]:
    for name in results:
        if name not in run.coder_names():
            add(run, name, "topk")
    return warnings_of_results(run, results, run.read_log())


def test_fine_results_are_not_spoken_of(run: Run):
    assert said(run, {"a": FINE}) == []


def test_coders_that_are_active_nowhere_are_named(run: Run):
    assert said(run, {"a": FINE, "c": FINE | {"l0": 0.0}, "b": FINE | {"l0": 0.2}}) == [
        "an L0 of about 0, which reconstructs little but the mean: b, c; lower sparsity where it is a penalty "
        "coefficient, or give jumprelu a target_l0"
    ]
    (line,) = said(run, {f"n{n}": FINE | {"l0": 0.0} for n in range(7)})
    assert "n0, n1, n2, n3, n4 and 2 more;" in line


def test_dead_and_dense_latents_are_named_with_the_worst_coder(run: Run):
    results = {
        "a": FINE,
        "b": FINE | {"dead_fraction": 0.3},
        "c": FINE | {"dead_fraction": 0.54, "dense_fraction": 0.11},
    }
    dead, dense = said(run, results)
    assert dead.startswith("2 of 3 coders have more than 10% dead latents") and dead.endswith("(c has 54%)")
    assert dense.startswith("1 of 3 coders have more than 10% dense latents") and dense.endswith("(c has 11%)")


def log(run: Run, losses: dict[str, list[float]]) -> None:
    steps = range(len(next(iter(losses.values()))))
    JsonLines(run.train_log).append(
        [{"coder": name, "step": step, "loss": own[step]} for step in steps for name, own in losses.items()]
    )


def test_a_loss_that_still_falls_is_said(run: Run):
    log(run, {"a": [1.0] * 40, "b": [2.0 * 0.98**step for step in range(40)]})
    (line,) = said(run, {"a": FINE, "b": FINE})
    assert line == (
        "the loss of 1 of 2 coders was still falling at the end of training, that of b by 8% over the last tenth: "
        "train on more tokens"
    )


def test_few_records_tell_nothing_of_a_fall(run: Run):
    log(run, {"a": [2.0 * 0.9**step for step in range(19)]})
    assert said(run, {"a": FINE}) == []


def test_architectures_of_unlike_l0_at_one_place_are_said(run: Run):
    add(run, "j", "jumprelu")
    add(run, "wide", "jumprelu", width=32)
    assert said(run, {"t": FINE, "j": FINE | {"l0": 17.0}, "wide": FINE | {"l0": 90.0}}) == []
    (line,) = said(run, {"t": FINE, "j": FINE | {"l0": 40.0}})
    assert line.startswith("the L0 of topk and jumprelu differ, such as 12 and 40 at L01.resid_post with 16 latents")
