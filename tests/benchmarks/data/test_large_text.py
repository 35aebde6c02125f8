"""The generated text and the measure of `benchmarks.data.large_text`, on a few kilobytes."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.data.large_text import Options, main, measure, table, write_text
from panscope import builtin
from panscope.data import files, identity
from panscope.lms.load import load
from panscope.planning.plan import SuiteConfig
from panscope.runs.run import Run


def test_the_text_is_as_long_as_asked_and_the_same_for_a_seed(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one.jsonl", "same.jsonl", "other.jsonl"))
    documents = write_text(one, 20_000, seed=3)
    write_text(same, 20_000, seed=3)
    write_text(other, 20_000, seed=4)
    assert 20_000 <= one.stat().st_size < 25_000
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    texts = [json.loads(line)["text"] for line in one.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == documents
    stories = [json.loads(line)["text"] for line in builtin.DEMO_TEXT.read_text(encoding="utf-8").splitlines()]
    assert {word for text in texts for word in text.split()} <= {word for story in stories for word in story.split()}


def test_every_round_indexes_and_hashes_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.jsonl"
    write_text(text, 20_000, seed=0)
    suite = SuiteConfig.read(
        {
            "model": {"path": "panscope://demo", "device": "cpu"},
            "data": {"text": [str(text)]},
            "coders": [{"architecture": "topk", "layers": 0, "width": 64, "sparsity": 4}],
        },
        "test",
    )
    indexed: list[Path] = []
    lines = files._lines
    monkeypatch.setattr(files, "_lines", lambda path: (indexed.append(path), lines(path))[1])
    hashed: list[Path] = []
    checksum = identity._checksum
    monkeypatch.setattr(identity, "_checksum", lambda path: hashed.append(path) or checksum(path))
    lm, run = load(suite.model), Run.create(tmp_path / "run")
    for done in (1, 2):
        seconds = measure(text, suite, run, lm)
        assert list(seconds) == ["plain read", "index", "evaluation key"]
        assert all(second > 0 for pair in seconds.values() for second in pair)
        assert len(indexed) == done
        assert len(hashed) == done


def test_the_result_is_appended_and_can_be_drawn(tmp_path: Path) -> None:
    options = Options(megabytes=0.02, repeats=2, folder=tmp_path, out=tmp_path / "results" / "lines.jsonl")
    main(options)
    main(options)
    one, other = (json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines())
    assert one["bytes"] == other["bytes"] >= 20_000
    assert one["documents"] == other["documents"] > 0
    assert {name: len(rounds) for name, rounds in one["seconds"].items()} == {
        "plain read": 2,
        "index": 2,
        "evaluation key": 2,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["results"]  # the generated text is gone


def test_the_table_has_medians_and_what_is_saved() -> None:
    line = {"bytes": 4_000_000, "seconds": {"plain read": [(1.0, 1.0)], "index": [(2.0, 0.5), (4.0, 0.5), (9.0, 0.5)]}}
    text = io.StringIO()
    Console(file=text, width=160).print(table(line))
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.getvalue().splitlines() if "|" in row]
    assert rows[2:] == [
        ["plain read", "1.000", "4", "1.000000", "-"],
        ["index", "4.000", "1", "0.500000", "3.500"],
    ]
