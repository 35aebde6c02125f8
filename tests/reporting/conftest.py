"""A complete fake run, written once, and its report."""

from pathlib import Path

import pytest

from panscope.reporting.runs import Results, read_runs
from panscope.reporting.write import Written, write_report
from tests.support.fake_run import Fake, write_run

SMALL = Fake(
    layers=2, kinds=("resid_post", "mlp_out"), widths=(64, 128), sparsities=(8, 16), architectures=("topk", "jumprelu")
)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything a report can draw; nobody changes it but for its report."""
    return write_run(tmp_path_factory.mktemp("runs") / "full", SMALL)


@pytest.fixture(scope="session")
def results(run: Path) -> Results:
    """What is in it."""
    return read_runs([run])


@pytest.fixture(scope="session")
def written(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Its report."""
    return write_report(results, tmp_path_factory.mktemp("reports") / "full")


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one coder that was measured on held-out text only, without positions, geometry or several widths."""
    fake = Fake(layers=1, kinds=("resid_post",), widths=(64,), sparsities=(16,), architectures=("topk",), labels=())
    return write_run(tmp_path_factory.mktemp("bare") / "bare", fake.bare())
