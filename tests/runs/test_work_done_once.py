"""One training run indexes its text once, hashes it at most once and walks the model's weights once."""

from pathlib import Path
from typing import Any

import pytest

from panscope import api
from panscope.data import files, identity
from panscope.lms import identity as identity_of_models
from panscope.storage import user_cache


def test_a_run_reads_its_text_and_hashes_the_weights_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Once upon a time there were {n} small dogs who liked to run.\n\n" for n in range(900)))
    walks: list[int] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(user_cache, "_in_memory", {})
    read = identity_of_models._of_paths
    monkeypatch.setattr(identity_of_models, "_of_paths", lambda paths: walks.append(1) or read(paths))
    hashed: list[Path] = []
    checksum = identity._checksum
    monkeypatch.setattr(identity, "_checksum", lambda path: hashed.append(path) or checksum(path))
    indexed: list[Path] = []
    paragraphs = files._paragraphs
    monkeypatch.setattr(files, "_paragraphs", lambda path: (indexed.append(path), paragraphs(path))[1])
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
    assert hashed == [text]


def test_a_changed_file_is_indexed_again(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one\n\ntwo\n")
    assert len(files.open_file(text, "text").units) == 2
    text.write_text("one\n\ntwo\n\nthree\n")
    assert [files.open_file(text, "text").read(number) for number in range(3)] == ["one", "two", "three"]
