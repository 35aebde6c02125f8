"""Documents: their numbers, their seeded order, and which of them are held out."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import xxhash

from panscope.data import documents as documents_module
from panscope.data.documents import DataConfig, LocalDocuments, open_documents
from panscope.data.files import open_file
from panscope.data.source import is_in_part
from panscope.types import UserError
from tests.support.word_text import config

Write = Callable[[list[str]], LocalDocuments]


def _numbers(documents: LocalDocuments, seed: int, epoch: int) -> list[int]:
    return [document.number for document in documents.walk(seed, epoch)]


@pytest.fixture
def three_files(tmp_path: Path) -> LocalDocuments:
    (tmp_path / "a.txt").write_text("a0\n\na1\n")
    pyarrow.parquet.write_table(
        pa.table({"text": [f"b{i}" for i in range(30)]}), tmp_path / "b.parquet", row_group_size=10
    )
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": f"c{i}"}) + "\n" for i in range(3)))
    return LocalDocuments([open_file(tmp_path / name, "text") for name in ("a.txt", "b.parquet", "c.jsonl")])


def test_numbers_run_through_the_files(three_files: LocalDocuments) -> None:
    expected = ["a0", "a1", *(f"b{i}" for i in range(30)), "c0", "c1", "c2"]
    assert len(three_files) == three_files.count == 35
    assert [three_files.text(i) for i in range(35)] == expected
    assert all(document.text == expected[document.number] for document in three_files.walk(0, 0))


def test_a_walk_is_a_permutation_that_keeps_row_groups_together(three_files: LocalDocuments) -> None:
    numbers = _numbers(three_files, 3, 0)
    assert sorted(numbers) == list(range(35))
    groups = [(number - 2) // 10 if 2 <= number < 32 else None for number in numbers]
    changes = sum(a != b for a, b in zip([-1, *groups], groups, strict=False) if b is not None)
    assert changes == 3
    inside = [number for number in numbers if 2 <= number < 12]
    assert inside != sorted(inside)


def test_the_order_is_a_function_of_seed_and_epoch(write: Write) -> None:
    documents = write([str(i) for i in range(200)])
    orders = {(seed, epoch): _numbers(documents, seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert _numbers(documents, 0, 1) == orders[0, 1]
    assert len({tuple(order) for order in orders.values()}) == 4
    for order in orders.values():
        assert sorted(order) == list(range(200)) != order


def test_a_walk_can_be_resumed(write: Write) -> None:
    documents = write([str(i) for i in range(20)])
    for taken in (0, 1, 19, 20):
        walk = documents.walk(5, 2)
        list(islice(walk, taken))
        again = documents.walk(5, 2)
        again.load_state_dict(walk.state_dict())
        assert list(again) == list(walk)


def test_held_out_is_by_hash_of_the_text() -> None:
    texts = [f"story {i}" for i in range(2_000)]
    held_out = {text for text in texts if is_in_part(text, "held_out", 0.1)}
    assert held_out == {text for text in texts if xxhash.xxh3_64_intdigest(text.encode()) / 2**64 < 0.1}
    assert held_out.isdisjoint(text for text in texts if is_in_part(text, "training", 0.1))
    assert all(is_in_part(text, "training", 0.1) for text in texts if text not in held_out)
    assert all(is_in_part(text, "all", 0.1) for text in texts)
    assert abs(len(held_out) - 200) < 5 * (2_000 * 0.1 * 0.9) ** 0.5  # five standard deviations


def test_open_documents_reads_every_named_file(tmp_path: Path) -> None:
    names = ("a.txt", "b.txt")
    for name in names:
        (tmp_path / name).write_text(name)
    documents = open_documents(DataConfig(text=tuple(str(tmp_path / name) for name in names)))
    assert sorted(document.text for document in documents.walk(0, 0)) == ["a.txt", "b.txt"]


def test_one_text_may_be_given_without_a_list() -> None:
    assert DataConfig.read({"text": "a.jsonl"}, "data") == DataConfig(text=("a.jsonl",))
    with pytest.raises(UserError, match="text is 5: input should be a valid tuple"):
        DataConfig.read({"text": 5}, "data")


def test_the_demo_text_is_the_file_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stories.jsonl").write_text('{"text": "once"}')
    monkeypatch.setattr(documents_module.builtin, "DEMO_TEXT", tmp_path / "stories.jsonl")
    assert [document.text for document in open_documents(DataConfig()).walk(0, 0)] == ["once"]


def test_invalid_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    for text, sentence in [
        (("missing.jsonl",), "'missing.jsonl' is not a file"),
        (("data/missing.csv",), "'data/missing.csv' is not a file"),
        (("nonsense",), "'nonsense' is not a file; .* or a hub dataset as owner/name"),
        ((str(tmp_path / "empty.txt"),), "there is no document in"),
        (("owner/name", "a.txt"), "hub dataset 'owner/name' cannot be combined with other text; give it alone"),
    ]:
        with pytest.raises(UserError, match=sentence):
            open_documents(DataConfig(text=text))


def test_invalid_configurations_are_refused() -> None:
    for fields in ({"context": 1}, {"held_out": 1.0}, {"text": ()}, {"sequences": 0}, {"packing": "tight"}):
        with pytest.raises(UserError, match=f"data: {next(iter(fields))}"):
            config(**fields)
