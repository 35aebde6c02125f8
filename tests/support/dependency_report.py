"""Names the dependency that broke: a pytest plugin for the runs against other libraries' newest and oldest releases.

After failures it prints, for each distribution, how many tests failed inside of its code (the deepest frame of the
traceback that belongs to an installed distribution), and which distributions differ from the locked versions.
"""

import importlib.metadata
import json
import re
from collections import Counter
from pathlib import Path

import pytest

TESTED = Path(__file__).parents[2] / "panscope" / "builtin" / "tested_versions.json"
_OF_A_DISTRIBUTION = re.compile(r"site-packages[\\/](\w+)")
_PROPERTY = "dependency that failed"
_OUR_OWN = ("_pytest", "pluggy", "pytest", "hypothesis")


def distribution_of(paths: list[str]) -> str | None:
    """The distribution that the deepest of a traceback's files belongs to; None if all are ours."""
    packages = importlib.metadata.packages_distributions()
    for path in reversed(paths):
        found = _OF_A_DISTRIBUTION.search(path)
        if found and found[1] not in _OUR_OWN:
            return packages.get(found[1], [found[1]])[0]
    return None


def differences() -> list[str]:
    """The distributions whose installed version is not the locked one, as `name locked -> installed`."""
    tested: dict[str, list[str]] = json.loads(TESTED.read_text(encoding="utf-8"))
    found = []
    for name, releases in tested.items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed = "missing"
        if installed.partition("+")[0] not in releases:
            found.append(f"{name} {' or '.join(releases)} -> {installed}")
    return found


class _Report:
    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> object:
        report = yield
        if call.excinfo is not None and report.failed:
            paths = [str(entry.path) for entry in call.excinfo.traceback]
            name = distribution_of(paths) or "none: the failure is in Panscope or its tests"
            report.user_properties.append((_PROPERTY, name))  # which xdist brings from its workers
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed.update(str(value) for key, value in report.user_properties if key == _PROPERTY)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.failed:
            terminalreporter.section("dependencies of the failed tests")
            for name, count in self.failed.most_common():
                terminalreporter.line(f"{count} failed in {name}")
            terminalreporter.line("differ from the locked versions: " + (", ".join(differences()) or "none"))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Report(), "dependency-report")
