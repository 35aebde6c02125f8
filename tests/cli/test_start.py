"""How long the command line takes to start, against what an import of numpy takes on the same machine at that time."""

import subprocess
import sys
import time

import pytest

TURNS = 5


def seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - began


@pytest.mark.soak
def test_help_starts_within_half_a_second_of_numpy() -> None:
    """Medians of turns, so that all are measured under the same load.

    The limits are 0.6 s and 1.0 s on a quiet machine, where numpy takes 0.1 s.
    """
    start = "import sys; from panscope.cli.main import main; sys.argv = ['panscope', *sys.argv[1:]]; main()"
    commands = {
        "numpy": ("-c", "import numpy"),
        "help": ("-c", start, "--help"),
        "train": ("-c", start, "train", "--help"),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            times[name].append(seconds(*command))
    numpy, shown, train = (sorted(times[name])[TURNS // 2] for name in commands)
    assert shown <= max(0.6, 6 * numpy)
    assert train <= max(1.0, 10 * numpy)
