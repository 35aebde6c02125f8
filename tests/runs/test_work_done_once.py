"""One training run indexes its text once, hashes it at most once and walks the model's weights once."""

from pathlib import Path
from typing import Any

import pytest

from panscope import api
from panscope.data import files, identity
from panscope.lms.model import LanguageModel


def test_a_run_reads_its_text_and_hashes_the_weights_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Once upon a time there were {n} small dogs who liked to run.\n\n" for n in range(900)))
    walks: list[int] = []
    state_dict = LanguageModel._weights_hash.func
    monkeypatch.setattr(LanguageModel._weights_hash, "func", lambda lm: walks.append(1) or state_dict(lm))
    indexed: list[Path] = []
    paragraphs = files._paragraphs
    monkeypatch.setattr(files, "_paragraphs", lambda path: (indexed.append(path), paragraphs(path))[1])
    before = identity._checksum.cache_info().misses
    suite: dict[str, Any] = {
        "name": "once",
        "tokens": 1500,
        "model": {"path": "panscope://demo", "device": "cpu"},
        "data": {"text": [str(text)], "sequences": 8, "context": 32, "held_out": 0.3},
        "eval": {"tokens": 200, "probes": 0},
        "train": {"batch": 128},
        "coders": [{"architecture": "topk", "layers": [0, 1], "width": 64, "sparsity": [4, 8]}],
    }
    assert api.train(suite, tmp_path / "run") is not None
    assert indexed == [text]
    assert len(walks) == 1
    assert identity._checksum.cache_info().misses - before == 1


def test_a_changed_file_is_indexed_again(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one\n\ntwo\n")
    assert len(files.open_file(text, "text").units) == 2
    text.write_text("one\n\ntwo\n\nthree\n")
    assert [files.open_file(text, "text").read(number) for number in range(3)] == ["one", "two", "three"]
