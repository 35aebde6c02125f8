"""The time that a run spends on indexing and hashing a large text file, against a plain read of the file.

    python -m benchmarks.data.large_text --megabytes 1000

`panscope train` opens its text to check the held-out part, to train and to evaluate, and the evaluation's key contains
the text's checksum. The index of a file and its checksum are cached in the process for as long as the file does not
change. So three things are timed on a generated .jsonl file, first and again in the same process:

- plain read: reading the file from the first to the last byte, in pieces, without doing anything with it.
- index: opening the documents (`open_documents`), for which every line's place in the file is found.
- evaluation key: `EvalJob.key`, for which the whole file is hashed; the model's weights are hashed before.

The file is in the page cache throughout, as it was just written, so these are times of the CPU and not of a disk. For
another round the file's modification time is changed, by which nothing that is cached is valid any longer.
"""

import json
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.support import machine
from benchmarks.support.command_line import run_command
from benchmarks.support.other_load import OtherLoad
from benchmarks.support.tables import markdown_table, wide_console
from panscope import builtin
from panscope.data.documents import open_documents
from panscope.events import Reporter
from panscope.lms.load import load
from panscope.lms.model import LanguageModel
from panscope.planning.plan import SuiteConfig
from panscope.runs.eval_request import HELD_OUT_REQUEST
from panscope.runs.evaluation import EvalJob
from panscope.runs.run import Run
from panscope.storage.json_lines import JsonLines
from panscope.types import UserError

_PIECE = 4 << 20
"""Bytes that the plain read takes at a time."""
_MIN_SENTENCES, _MAX_SENTENCES = 5, 40
"""Of a generated document."""
_SENTENCE_END = re.compile(r"(?<=[.!?\"])\s+")
Seconds = dict[str, tuple[float, float]]
"""By measure: the first time, and again in the same process."""


@dataclass(frozen=True)
class Options:
    """The time that a run spends on indexing and hashing a large text file."""

    megabytes: float = 1000
    """Size of the generated text, in 10^6 bytes."""
    seed: int = 0
    """The seed of the generated text."""
    repeats: int = 3
    """Rounds; the table has the medians."""
    folder: Path | None = None
    """Where the temporary folder of the text is made; left out, the system's place for such folders."""
    label: str = ""
    """A note that is written with the results."""
    out: Path = Path("benchmarks/results/large_text.jsonl")
    """The result is appended to this file."""


def main(options: Options) -> None:
    """Generate the text, measure, record and print."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        line = _measured(options, Path(folder))
    JsonLines(options.out).append([line])
    console = wide_console()
    console.print(f"{line['bytes'] / 1e6:,.0f} MB, {line['documents']:,} documents", highlight=False)
    console.print(table(line))


def write_text(path: Path, size: int, seed: int) -> int:
    """Write at least `size` bytes of JSON lines to `path`; returns the number of documents.

    Each document is a random number of random sentences of the built-in stories.
    """
    rng, sentences, documents, written = random.Random(seed), _sentences(), 0, 0
    with path.open("wb") as file:
        while written < size:
            chosen = rng.choices(sentences, k=rng.randint(_MIN_SENTENCES, _MAX_SENTENCES))
            written += file.write(b'{"text": "' + b" ".join(chosen) + b'"}\n')
            documents += 1
    return documents


def _sentences() -> list[bytes]:
    """The sentences of the built-in stories, escaped as in a JSON string."""
    stories = [json.loads(line)["text"] for line in builtin.DEMO_TEXT.read_text(encoding="utf-8").splitlines()]
    found = [sentence for story in stories for sentence in _SENTENCE_END.split(story) if sentence]
    return [json.dumps(sentence)[1:-1].encode() for sentence in found]


def _measured(options: Options, folder: Path) -> dict[str, Any]:
    """The result of all rounds on a text in `folder`; raises UserError unless every document is found again."""
    path = folder / "text.jsonl"
    documents = write_text(path, int(options.megabytes * 1e6), options.seed)
    suite, run, load_of_others = _suite(path), Run.create(folder / "run"), OtherLoad()
    lm = load(suite.model)
    _ = lm.identity  # computed once in a process; the key's other large part
    rounds = [measure(path, suite, run, lm) for _ in range(options.repeats)]
    found = open_documents(suite.data).count
    if found != documents:
        raise UserError(f"{str(path)!r} has {documents} documents, but its index has {found}: the index is wrong")
    asked = {name: value for name, value in asdict(options).items() if name not in ("folder", "out")}
    facts = {"others": load_of_others.share(), "date": time.strftime("%F"), "machine": machine.facts()}
    seconds = {name: [each[name] for each in rounds] for name in rounds[0]}
    return asked | {"bytes": path.stat().st_size, "documents": documents, "seconds": seconds} | facts


def _suite(path: Path) -> SuiteConfig:
    """One small coder on the built-in model, to be trained on the text."""
    fields: dict[str, Any] = {
        "model": {"path": "panscope://demo", "device": "cpu"},
        "data": {"text": [str(path)]},
        "coders": [{"architecture": "topk", "layers": 0, "width": 64, "sparsity": 4}],
    }
    return SuiteConfig.read(fields, "the benchmark")


def measure(path: Path, suite: SuiteConfig, run: Run, lm: LanguageModel) -> Seconds:
    """One round on the text `path` of a suite, with nothing about the file in any cache but the system's."""
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    work: dict[str, Callable[[], object]] = {
        "plain read": lambda: _read_plainly(path),
        "index": lambda: open_documents(suite.data),
    }
    seconds = {name: (_seconds(do), _seconds(do)) for name, do in work.items()}
    jobs = [EvalJob(run, suite, lm, Reporter(), HELD_OUT_REQUEST) for _ in range(2)]
    first, again = (_seconds(lambda job=job: job.key) for job in jobs)
    return seconds | {"evaluation key": (first, again)}


def _seconds(do: Callable[[], object]) -> float:
    begin = time.perf_counter()
    do()
    return time.perf_counter() - begin


def _read_plainly(path: Path) -> None:
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def table(line: dict[str, Any]) -> Table:
    """A row for each measure of a result, with medians over rounds."""
    shown = markdown_table(("", "first, s", "MB/s", "again in the same process, s", "saved, s"))
    for name, rounds in line["seconds"].items():
        first, again = (statistics.median(times) for times in zip(*rounds, strict=True))
        saved = "-" if name == "plain read" else f"{first - again:.3f}"
        shown.add_row(name, f"{first:.3f}", f"{line['bytes'] / 1e6 / first:,.0f}", f"{again:.6f}", saved)
    return shown


if __name__ == "__main__":
    run_command(main, Options)
