"""SAELens' `encode` and `decode` of one of its SAEs on given rows; `benchmarks.inference.attach` runs this script.

    PEERS/bin/python benchmarks/inference/saelens_codes.py FOLDER THREADS

It runs in the interpreter that has SAELens and imports nothing of Panscope. FOLDER holds `coder`, an SAE in SAELens'
format, and `rows.safetensors`. For each line of standard input, `encode` or `decode`, one line is printed: the seconds
it took. When the input ends, the reconstruction is written to FOLDER/theirs.safetensors.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import sae_lens  # pyright: ignore[reportMissingImports]
import torch
from sae_lens import SAE  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file


def main(folder: Path, threads: int) -> None:
    """Answer the lines of standard input until it ends."""
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
    """Print one line at once, since the other process waits for it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds coder/ and rows.safetensors")
    parser.add_argument("threads", type=int, help="threads of torch")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.threads)
