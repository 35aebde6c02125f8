"""Small runs give the numbers that were recorded before: no change of structure changes what a run computes.

On another CPU the same run differs in the last bits of its sums. Run with the vector code of other CPUs, the recorded
suites differed by up to 2.4e-7 in loss, FVU and evaluation and 2e-5 in the sums over a tensor; the tolerances leave
room for CPUs that could not be tried. Where the machine is of the kind that recorded them, the weights are equal bit
for bit.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import golden_runs

NUMBERS_TOLERANCE = 1e-4
WEIGHTS_TOLERANCE = 1e-3


def recorded(name: str) -> dict[str, Any]:
    return json.loads((golden_runs.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


Pair = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module", params=list(golden_runs.SUITES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """What a run gives now, and what was recorded of it."""
    found = golden_runs.measure(request.param, tmp_path_factory.mktemp("golden") / "run")
    return found, recorded(request.param)


def check_numbers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["curve"] == [pytest.approx(line, rel=NUMBERS_TOLERANCE) for line in expected["curve"]]
    for coder, numbers in expected["evaluation"].items():
        assert found["evaluation"][coder] == pytest.approx(numbers, rel=NUMBERS_TOLERANCE)


def test_training_curve_and_evaluation(pair: Pair) -> None:
    check_numbers(*pair)


def test_weights(pair: Pair) -> None:
    found, expected = (each["weights"] for each in pair)
    assert {coder: list(tensors) for coder, tensors in found.items()} == {
        coder: list(tensors) for coder, tensors in expected.items()
    }
    for coder, tensors in expected.items():
        for name, summary in tensors.items():
            for number in ("norm", "sum_of_cubes"):
                close = pytest.approx(summary[number], rel=WEIGHTS_TOLERANCE)
                assert found[coder][name][number] == close, (coder, name, number)


def test_weights_bit_for_bit(pair: Pair) -> None:
    found, expected = pair
    if found["environment"] != expected["environment"]:
        pytest.skip(f"recorded on {expected['environment']}, this machine is {found['environment']}")
    for coder, tensors in expected["weights"].items():
        for name, summary in tensors.items():
            assert found["weights"][coder][name]["sha256"] == summary["sha256"], (coder, name)


@pytest.mark.parametrize("change", [{"adam_betas": [0.9, 0.9985]}, {"lr_end": 0.01}])
def test_a_slightly_different_run_is_seen(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = golden_runs.SUITES["topk"]
    monkeypatch.setitem(golden_runs.SUITES, "topk", suite | {"coders": [suite["coders"][0] | change]})
    with pytest.raises(AssertionError):
        check_numbers(golden_runs.measure("topk", tmp_path / "run"), recorded("topk"))
