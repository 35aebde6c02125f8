"""SAELens' side of `benchmarks.attach`: `encode` and `decode` of one of its SAEs on given rows, a run at a time.

Run by the interpreter that has SAELens, as a script: nothing of Panscope is there. A line in, `encode` or `decode`,
gives a line out, the seconds it took; at the end of the input the reconstruction is written beside the rows.
"""

import json
import sys
import time
from pathlib import Path

import sae_lens
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file


def main(folder: Path, threads: int) -> None:
    """Serve until the input ends."""
    torch.set_num_threads(threads)
    sae = SAE.load_from_disk(folder / "coder", device="cpu")
    x = load_file(folder / "rows.safetensors")["x"]
    with torch.no_grad():
        codes = sae.encode(x)
        y_hat = sae.decode(codes)
        say(json.dumps({"version": sae_lens.__version__, "layout": str(codes.layout)}))
        for line in sys.stdin:
            began = time.perf_counter()
            if line.strip() == "encode":
                codes = sae.encode(x)
            else:
                sae.decode(codes)
            say(repr(time.perf_counter() - began))
    save_file({"y_hat": y_hat.contiguous()}, folder / "theirs.safetensors")


def say(text: str) -> None:
    """One line to who asked."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
