"""Write tests/golden/*.json again: `python -m tools.record_golden`.

Only for a change that is meant to change what a run computes; such a change says so in docs/LOG.md, with how much.
"""

import json
import tempfile
from pathlib import Path

import torch

from tests.support import golden_runs


def main() -> None:
    torch.set_num_threads(1)
    for name in golden_runs.SUITES:
        with tempfile.TemporaryDirectory() as folder:
            found = golden_runs.measure(name, Path(folder) / "run")
        text = json.dumps(found, indent=1) + "\n"
        (golden_runs.FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
