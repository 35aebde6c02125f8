"""The lock files, the declared ranges and the tested versions agree; a failure names the dependency it came from."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support import dependency_report

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [
    Requirement(one) for one in [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
]
THIRD_PARTY = {canonicalize_name(one.name): one for one in DECLARED if one.name != "panscope"}
TESTED = json.loads(dependency_report.TESTED.read_text(encoding="utf-8"))
OUTSIDE_OF_THE_LOCK = {"torch"}


def locked(name: str) -> dict[str, list[str]]:
    """Every version of each distribution in a lock file."""
    text = (REPOSITORY / "requirements" / name).read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for line, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE):
        found.setdefault(line, []).append(version)
    return found


@pytest.mark.parametrize("file", ["locked.txt", "oldest.txt"])
def test_every_declared_dependency_is_locked_inside_its_range(file: str) -> None:
    versions = locked(file)
    for name, requirement in THIRD_PARTY.items():
        if name not in OUTSIDE_OF_THE_LOCK:
            assert all(Version(version) in requirement.specifier for version in versions[name]), name


def test_the_oldest_lock_holds_the_lowest_versions_declared() -> None:
    versions = locked("oldest.txt")
    for name, requirement in THIRD_PARTY.items():
        if name not in OUTSIDE_OF_THE_LOCK:
            (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
            assert {Version(version) for version in versions[name]} == {bound}, name


def test_tested_versions_are_those_of_the_lock() -> None:
    versions = locked("locked.txt")
    assert set(TESTED) == set(THIRD_PARTY)
    assert all(TESTED[name] == versions[name] for name in TESTED if name not in OUTSIDE_OF_THE_LOCK)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH := {TESTED['torch'][0]}\n" in makefile


@pytest.mark.parametrize("file", ["locked.txt", "oldest.txt", "peers.txt"])
def test_a_lock_has_hashes_and_neither_torch_nor_paths(file: str) -> None:
    text = (REPOSITORY / "requirements" / file).read_text(encoding="utf-8")
    blocks = re.split(r"\n(?=[\w-]+==)", text)[1:]
    assert len(blocks) > 50
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"^(torch==|nvidia-|cuda-)|://|file:", text, re.MULTILINE)


def test_a_failure_names_the_deepest_distribution() -> None:
    site = "/x/lib/python3.11/site-packages"
    paths = ["/x/tests/test_a.py", f"{site}/transformers/a.py", f"{site}/torch/nn/b.py", f"{site}/_pytest/c.py"]
    assert dependency_report.distribution_of(paths) == "torch"
    assert dependency_report.distribution_of(paths[:2]) == "transformers"
    assert dependency_report.distribution_of(paths[:1]) is None


def test_a_failing_session_says_which_dependency_it_was(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import transformers\ndef test_it():\n    transformers.AutoConfig.from_pretrained('/nowhere')\n"
    )
    result = pytester.runpytest_inprocess("-p", "tests.support.dependency_report", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*dependencies of the failed tests*", "1 failed in *"])


def test_another_version_than_the_locked_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "tested.json"
    other.write_text(json.dumps({"numpy": ["0.1"], "no-such-thing": ["1.0"]}))
    monkeypatch.setattr(dependency_report, "TESTED", other)
    numpy, missing = dependency_report.differences()
    assert numpy.startswith("numpy 0.1 -> ") and missing == "no-such-thing 1.0 -> missing"
