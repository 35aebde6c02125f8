"""Measurements in a process of their own: a module is run by name and its result comes back as one line of JSON.

A separate process gives every measurement the same start: no memory, compiled code or threads of an earlier one.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from panscope.types import UserError

_REPOSITORY = Path(__file__).parents[2]


def run_module(module: str, *arguments: str) -> Any:
    """The value that `python -m MODULE ARGUMENTS` printed as JSON on its last line.

    Raises UserError with the process's error output if it fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        shown = shlex.join(["python", "-m", module, *arguments])
        raise UserError(f"`{shown}` failed with exit status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def print_json(value: Any) -> None:
    """Print a value for `run_module` to read."""
    sys.stdout.write(json.dumps(value) + "\n")
