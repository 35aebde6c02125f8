"""Memory must not grow with the length of a run, nor with that of its text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_lm import Tiny, write_text

DRIVER = """
import json, resource, sys
from panscope.cli.main import main
sys.argv = ["panscope", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert end.code == 0
print(json.dumps({"peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


def peak_mib(folder: Path, *arguments: str) -> float:
    """The largest resident size of a `panscope` of its own."""
    command = [sys.executable, "-c", DRIVER, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["peak_kib"] / 1024


@pytest.mark.soak
@pytest.mark.parametrize("shuffle", ["buckets", "pool"])
def test_four_times_the_tokens_need_no_more_memory(tiny: Tiny, tmp_path: Path, shuffle: str):
    """The text and the tokens to evaluate on grow with it.

    The buffer is a fixed 20,000 rows of 16 numbers, 1.3 MB a site; 600,000 more rows would be 40 MB at each of two
    sites, 14 MB more text. Peaks of the same run differ by some MiB (the allocator), so 16 MiB is the margin.
    """
    peaks = []
    for times in (1, 4):
        text = tmp_path / f"text{times}.jsonl"
        write_text(text, 40_000 * times, seed=times)
        suite = tiny.suite(
            tmp_path / f"suite{times}.toml",
            tokens=200_000 * times,
            data={"text": [str(text)], "held_out": 0.05},
            activations={"shuffle": shuffle, "buffer_rows": 20_000},
            eval={"tokens": 5_000 * times},
            train={"batch": 1000, "log_every": 10, "checkpoint_every": 50},
        )
        peaks.append(peak_mib(tmp_path, "train", str(suite), "--out", f"run{times}"))
    assert abs(peaks[1] - peaks[0]) < 16, peaks
