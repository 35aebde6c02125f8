"""The model and the texts that the suites in this folder need, from the Hugging Face hub into build/evidence.

    python -m benchmarks.suites.data                    # most of the time is for sampling
    python -m benchmarks.suites.data --have FOLDER      # link what is in FOLDER/models and FOLDER/text instead

- models/stories260K: llama2.c's model of 260,032 parameters (hub: karpathy/tinyllamas, MIT), converted to a folder for
  transformers. Its files are compared with the checksums of those that the numbers in docs/ were measured on.
- text/tinystories.jsonl: 1,000 TinyStories (hub: roneneldan/TinyStories, CDLA-Sharing-1.0), the first ones of the
  training split with at least 465 characters. The numbers in docs/ were measured on another 1,000 of at least that
  length, so that they agree up to sampling.
- text/tinystories_sampled.jsonl: 4,000 stories sampled from the model at temperature 1, each after the first words of a
  real one. For the numbers in docs/, they were sampled with other random numbers.

What is there already is kept. Without a network, the same suites run on the built-in model and text, which give other
numbers: add `--model panscope://demo --text panscope://demo --context 256`.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import huggingface_hub

from benchmarks.suites.llama2c import write_model
from benchmarks.support.command_line import run_command
from benchmarks.support.tables import wide_console
from panscope import api
from panscope.formats.hub import HUB_ERRORS, safe_message
from panscope.runs.rollouts import RolloutConfig
from panscope.storage.atomic import replacing, replacing_folder
from panscope.types import UserError

MODEL_REPO = "karpathy/tinyllamas"
MODEL_FILES = {
    "stories260K/stories260K.bin": "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
    "stories260K/tok512.bin": "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
}
"""With their sha256."""
TEXT_REPO = "roneneldan/TinyStories"
MODEL, REAL, SAMPLED = "models/stories260K", "text/tinystories.jsonl", "text/tinystories_sampled.jsonl"
_SHORTEST = 465
"""Characters of a story at least."""
_OPENING_WORDS = 4


@dataclass(frozen=True)
class Options:
    """Fetch or make the model and the texts of the suites in benchmarks/suites."""

    out: Path = Path("build/evidence")
    """The folder that the suites name."""
    have: Path | None = None
    """A folder that has them already, under the same names: they are linked."""
    stories: int = 1_000
    """Number of real stories."""
    sampled: int = 4_000
    """Number of sampled stories."""
    seed: int = 0
    """Of the sampled stories."""


def main(options: Options) -> None:
    """Make what is missing, and say what there is; raises UserError for what cannot be fetched."""
    console = wide_console()
    for name, make in ((MODEL, _fetch_model), (REAL, _fetch_stories), (SAMPLED, _sample_stories)):
        path = options.out / name
        if path.exists():
            console.print(f"{path} is there", highlight=False)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if options.have is None:
            make(path, options)
        else:
            _link(path, options.have / name)
        console.print(f"{path} is made", highlight=False)


def _link(path: Path, existing: Path) -> None:
    if not existing.exists():
        raise UserError(f"--have: {str(existing)!r} does not exist")
    path.symlink_to(existing.absolute())


def _fetch_model(path: Path, options: Options) -> None:
    files, reason = [], ""
    try:
        files = [Path(huggingface_hub.hf_hub_download(MODEL_REPO, name)) for name in MODEL_FILES]
    except HUB_ERRORS as error:
        reason = safe_message(error)
    if not files:
        raise UserError(f"{MODEL_REPO!r} cannot be downloaded from the hub: {reason}")
    for file, checksum in zip(files, MODEL_FILES.values(), strict=True):
        if hashlib.sha256(file.read_bytes()).hexdigest() != checksum:
            raise UserError(f"{str(file)!r} is not the file that the numbers in docs/ were measured on")
    weights, tokenizer = files
    with replacing_folder(path) as folder:
        write_model(weights, tokenizer, folder)


def _fetch_stories(path: Path, options: Options) -> None:
    stories: list[str] = []
    reason = ""
    try:
        rows = datasets.load_dataset(TEXT_REPO, split="train", streaming=True)
        texts = (row["text"].strip() for row in rows)
        stories = list(islice((text for text in texts if len(text) >= _SHORTEST), options.stories))
    except HUB_ERRORS as error:
        reason = safe_message(error)
    if len(stories) < options.stories:
        raise UserError(f"{TEXT_REPO!r} cannot be read from the hub: {reason or 'it has too few stories'}")
    _write(path, stories)


def _sample_stories(path: Path, options: Options) -> None:
    """Stories of the model, each after the first words of a real one."""
    real = [json.loads(line)["text"] for line in (options.out / REAL).read_text(encoding="utf-8").splitlines()]
    openings = [" ".join(text.split()[:_OPENING_WORDS]) for text in real]
    chats = path.with_suffix(".rollouts.jsonl")
    config = RolloutConfig(count=options.sampled, tokens=500, seed=options.seed)
    try:
        api.make_rollouts(str(options.out / MODEL), openings, chats, config)
        rows = [json.loads(line) for line in chats.read_text(encoding="utf-8").splitlines()]
    finally:
        chats.unlink(missing_ok=True)
    _write(path, (row["prompt"] + row["response"] for row in rows))


def _write(path: Path, texts: Iterable[str]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


if __name__ == "__main__":
    run_command(main, Options)
