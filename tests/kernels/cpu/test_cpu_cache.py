"""The on-disk cache of compiled kernels: its folder, invalidation, and the warning if there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from panscope.kernels.cpu import compiled

HELPER = """
from compiled import inlined

@inlined
def helper(x):
    return x + {added}
"""
KERNEL = """
import sys
from compiled import kernel
from helper import helper

@kernel
def compute(x):
    return helper(x) * 2

if __name__ == "__main__":
    print(compute(1), sum(compute.stats.cache_hits.values()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of one kernel and one helper, with this repository's decorators."""
    folder = tmp_path / "package"
    folder.mkdir()
    shutil.copy(compiled.__file__, folder / "compiled.py")
    (folder / "helper.py").write_text(HELPER.format(added=1))
    (folder / "kernel.py").write_text(KERNEL)
    return folder


def run(package: Path, **environment: str) -> str:
    """The result of the kernel and the number of cache hits, or the error."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    command = [sys.executable, "-B", str(package / "kernel.py")]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=100)
    return (done.stdout + done.stderr).strip()


def test_the_second_process_finds_it_until_any_file_changes(package: Path) -> None:
    """A changed helper invalidates the cache too, although Numba checks the kernel's own file alone."""
    assert run(package) == "4 0"
    assert list((package / "__pycache__").glob("kernel.compute*.nbc"))
    assert run(package) == "4 1"
    (package / "helper.py").write_text(HELPER.format(added=2))
    assert run(package) == "6 0"
    assert run(package) == "6 1"


RECORDS = """
from typing import NamedTuple
from compiled import kernel

class {name}(NamedTuple):
    number: int

@kernel
def compute(record):
    return record.number * 2

"""
RUN = "print(compute({name}(2)), sum(compute.stats.cache_hits.values()))\n"


def test_a_renamed_argument_type_leaves_no_file_that_cannot_be_read(package: Path) -> None:
    """As if a newer release is installed over an older one."""
    for name in ("Before", "After"):
        (package / "records.py").write_text(RECORDS.format(name=name))
        (package / "kernel.py").write_text(f"from records import compute, {name}\n" + RUN.format(name=name))
        assert run(package) == "4 0"


def test_a_folder_of_the_users_choice(package: Path, tmp_path: Path) -> None:
    for hits in (0, 1):
        assert run(package, NUMBA_CACHE_DIR=str(tmp_path / "chosen")) == f"4 {hits}"
    assert list((tmp_path / "chosen").rglob("kernel.compute*.nbc"))
    assert not (package / "__pycache__").exists()


def test_the_users_cache_folder_where_the_package_cannot_be_written_to(package: Path, tmp_path: Path) -> None:
    """A file in place of `__pycache__` blocks writing even for root."""
    (package / "__pycache__").write_text("")
    for hits in (0, 1):
        assert run(package, XDG_CACHE_HOME=str(tmp_path / "home"), HOME=str(tmp_path)) == f"4 {hits}"
    if sys.platform == "linux":
        assert list((tmp_path / "home").rglob("kernel.compute*.nbc"))


def test_nowhere_to_write_is_said_and_works(package: Path, tmp_path: Path) -> None:
    (package / "__pycache__").write_text("")
    barred = tmp_path / "barred"
    barred.write_text("")
    said = run(package, XDG_CACHE_HOME=str(barred), HOME=str(barred))
    assert said.startswith("4 0")
    assert said.count("Numba finds no writable folder to cache kernels in") == 1


def test_importing_compiles_nothing() -> None:
    code = "from panscope.kernels.cpu import topk, update; print(topk._rows.stats, update._step_rows.stats)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.count("cache_hits=Counter(), cache_misses=Counter()") == 2
