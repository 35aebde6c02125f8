"""A package of its own adds an architecture, a metric and a format, and Panscope's command line works with them.

The package is `tests/support/extension_package`, installed into a folder that only these processes look into.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from panscope import coders
from panscope.cli.main import main
from panscope.evals.metrics import metric_named
from panscope.evals.moments import Layout
from panscope.extensions import extension
from panscope.formats import format_named
from panscope.types import UserError

PACKAGE = Path(__file__).parent.parent / "support" / "extension_package"
SUITE = """
name = "extended"
tokens = 2560
data = { context = 32, sequences = 8, held_out = 0.1 }
activations = { norm_rows = 256, buffer_rows = 512 }
train = { batch = 128, log_every = 5 }
eval = { tokens = 200, metrics = ["largest_error"] }

[[coders]]
architecture = "logrelu"
layers = [1]
width = 32
sparsity = 0.01
scale = 0.2
normaliser = "unit_rms"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", str(target), str(PACKAGE)], check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def run(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the command line in a process of its own, which the package was not imported into before."""
    folder = tmp_path_factory.mktemp("extended")
    (folder / "suite.toml").write_text(SUITE)
    code = "import sys; from panscope.cli.main import main; sys.argv[0] = 'panscope'; main()"
    paths = os.pathsep.join([str(Path(__file__).parent.parent.parent), str(installed)])
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "suite.toml", "--out", "run"],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder / "run"


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def panscope(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """The command line in this process: its exit status, and what it printed."""

    def call(*words: object, path: Path | None = None) -> tuple[int, str]:
        extension.cache_clear()
        if path is not None:
            monkeypatch.syspath_prepend(path)
        monkeypatch.setattr(sys, "argv", ["panscope", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "400")
        with pytest.raises(SystemExit) as caught:
            main()
        seen = capsys.readouterr()
        return int(caught.value.code or 0), seen.out + seen.err

    yield call
    extension.cache_clear()
    for name in [name for name in sys.modules if name.startswith("panscope_example")]:
        del sys.modules[name]


def test_the_architecture_is_trained_and_the_metric_measured(run: Path):
    (coder,) = (run / "coders").iterdir()
    assert coder.name == "L01R-0.25x-logrelu-l0.01"
    config = json.loads((coder / "config.json").read_text())
    assert (config["coder"]["architecture"], config["coder"]["scale"]) == ("logrelu", 0.2)
    fields = json.loads((coder / "eval.json").read_text())
    assert 0 < fields["largest_error"] < fields["fvu"] * 1e3
    low, high = fields["intervals"]["largest_error"]
    assert low < fields["largest_error"] < high


def test_a_request_names_the_metric_too(run: Path, installed: Path, panscope: Call):
    status, said = panscope("eval", run, "--label", "again", "--metrics", "largest_error", path=installed)
    assert status == 0, said
    (coder,) = (run / "coders").iterdir()
    again = json.loads((coder / "eval-again.json").read_text())
    assert again["largest_error"] == json.loads((coder / "eval.json").read_text())["largest_error"]


def test_the_format_goes_both_ways(run: Path, installed: Path, tmp_path: Path, panscope: Call):
    status, said = panscope("export", run, "--format", "npz", "--out", tmp_path / "exported", path=installed)
    assert status == 0, said
    words = ("--format", "npz", "--model", "panscope://demo", "--out", tmp_path / "back")
    status, said = panscope("import", tmp_path / "exported", *words)
    assert status == 0, said
    (coder,) = (tmp_path / "back" / "coders").iterdir()
    assert json.loads((coder / "config.json").read_text())["coder"]["architecture"] == "relu"
    assert "npz" in panscope("formats")[1]


def test_without_the_package_each_is_a_sentence(run: Path, tmp_path: Path, panscope: Call):
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    for words, expected in (
        (("train", suite, "--out", tmp_path / "x"), "architecture 'logrelu' is unknown: use one of relu, topk"),
        (("eval", run, "--label", "x"), "'logrelu' is unknown"),
        (("export", run, "--format", "npz", "--out", tmp_path / "y"), "format 'npz' is unknown: use one of saelens"),
    ):
        status, said = panscope(*words)
        assert status == 2 and expected in said, said


def broken(folder: Path, group: str, name: str, value: str) -> Path:
    """A folder with a distribution that offers `value`."""
    info = folder / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[panscope.{group}]\n{name} = {value}\n")
    (folder / "broken_module.py").write_text(
        "from panscope.coders import ARCHITECTURES\nfrom panscope.evals.metrics.fvu import FVU\n"
        "THREE, TOPK, AGAIN = 3, ARCHITECTURES['topk'], FVU\n"
    )
    return folder


@pytest.mark.parametrize(
    ("group", "value", "said"),
    [
        ("architectures", "no_such_module:X", "cannot be imported: ModuleNotFoundError: No module named"),
        ("architectures", "broken_module:THREE", "is not a pair of a CoderConfig and a Coder class: report it"),
        ("architectures", "broken_module:TOPK", "is not one whose configuration has architecture 'odd' by default"),
        ("formats", "panscope.formats.saelens:SAELENS", "is not a panscope.formats.Format of the name 'odd'"),
        ("metrics", "broken_module:THREE", "is not a panscope.evals.metrics.base.Metric: report it"),
        ("formats", "broken_module:THREE", "is not a panscope.formats.Format of the name 'odd': report it"),
    ],
)
def test_a_broken_extension_is_named_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, value: str, said: str
):
    look_up = {"architectures": coders.config_type, "metrics": metric_named, "formats": format_named}[group]
    monkeypatch.syspath_prepend(broken(tmp_path / "site", group, "odd", value))
    extension.cache_clear()
    sys.modules.pop("broken_module", None)
    with pytest.raises(UserError) as caught:
        look_up("odd")
    assert str(caught.value).startswith(f"'odd' of the distribution 'broken' ({value}) {said}")
    extension.cache_clear()


def test_a_built_in_name_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The entry point is not even imported."""
    monkeypatch.syspath_prepend(broken(tmp_path / "site", "architectures", "topk", "no_such_module:X"))
    extension.cache_clear()
    assert coders.config_type("topk").__module__ == "panscope.coders.topk"
    extension.cache_clear()


def test_no_number_is_taken_from_a_built_in_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(broken(tmp_path / "site", "metrics", "mine", "broken_module:AGAIN"))
    extension.cache_clear()
    sys.modules.pop("broken_module", None)
    with pytest.raises(UserError, match="the metric 'mine' gives 'fvu', which is a number of Panscope: leave it out"):
        Layout.with_metrics(["mine"])
    extension.cache_clear()
