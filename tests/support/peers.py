"""Other tools' own readers, run as a second interpreter: they prove what is exported and are no dependency of ours.

The interpreter is `.venv-peers/bin/python` beside the tests, or what PANSCOPE_PEERS names; without one, a test is
skipped. Arguments and answers are files in the test's folder, so nothing of ours is imported over there.
"""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent
_LONGEST = 180
"""Seconds: importing SAELens alone takes ten on a slow machine."""
_QUIET = {"SPARSIFY_DISABLE_TRITON": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def peers_python() -> Path:
    """The interpreter that has the other tools; the test is skipped where there is none."""
    stated = os.environ.get("PANSCOPE_PEERS")
    python = Path(stated).expanduser() if stated else REPOSITORY / ".venv-peers" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"the other tools are not installed: {python} is missing (`make peers`, or set PANSCOPE_PEERS)")
    return python


def run_in_peers(script: str, *arguments: object) -> str:
    """Run `script` over there with `arguments` as sys.argv[1:] and give what it printed; fails with its last words."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | _QUIET
    done = subprocess.run(
        [str(peers_python()), "-c", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LONGEST,
        check=False,
    )
    assert done.returncode == 0, f"the other tool failed:\n{done.stderr[-3000:]}"
    return done.stdout
