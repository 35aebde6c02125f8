"""Streamed datasets: every document once, shuffled within windows, and exact resumption. No network is used."""

from itertools import islice

import datasets
import pytest

from panscope.data import hub
from panscope.data.documents import DataConfig, open_documents
from panscope.data.hub import HubDocuments, open_hub
from panscope.types import UserError


def _dataset(rows: int) -> datasets.IterableDataset:
    table = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(rows)], "n": list(range(rows))})
    return table.to_iterable_dataset(num_shards=3)


def test_a_walk_gives_every_document_once_shuffled_in_windows() -> None:
    documents = HubDocuments(_dataset(25), "text", window=10)
    walked = list(documents.walk(0, 0))
    assert all(document.text == f"text {document.number}" for document in walked)
    numbers = [document.number for document in walked]
    windows = [numbers[:10], numbers[10:20], numbers[20:]]
    assert [sorted(window) for window in windows] == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    assert all(window != sorted(window) for window in windows)
    assert [d.number for d in documents.walk(0, 0)] == numbers
    assert [d.number for d in documents.walk(0, 1)] != numbers


def test_a_walk_can_be_resumed_during_another_walk() -> None:
    documents = HubDocuments(_dataset(25), "text", window=10)
    expected = list(documents.walk(4, 1))
    for taken in range(26):
        walk, other = documents.walk(4, 1), documents.walk(7, 0)
        list(islice(walk, taken))
        list(islice(other, 13))
        again = documents.walk(4, 1)
        again.load_state_dict(walk.state_dict())
        assert again.state_dict() == walk.state_dict()
        assert list(again) == list(walk) == expected[taken:]


def test_null_is_empty_and_other_types_are_refused() -> None:
    table = datasets.Dataset.from_dict({"text": ["a", None]}).to_iterable_dataset()
    assert sorted(document.text for document in HubDocuments(table, "text").walk(0, 0)) == ["", "a"]
    with pytest.raises(UserError, match="is 'n', which has type int in document 0"):
        next(HubDocuments(_dataset(3), "n").walk(0, 0))


def test_a_column_that_rows_lack_is_an_error_and_not_empty_text() -> None:
    """A streamed dataset may not know its columns before a row is read."""
    with pytest.raises(
        UserError, match=r"data.column is 'body', but document \d has no such column \(it has 'text', 'n'\)"
    ):
        next(HubDocuments(_dataset(3), "body").walk(0, 0))


def test_the_configuration_is_passed_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[tuple, dict]] = []

    def load_dataset(*args: object, **options: object) -> datasets.IterableDataset:
        calls.append((args, options))
        return _dataset(3)

    monkeypatch.setattr(hub.datasets, "load_dataset", load_dataset)
    config = DataConfig(text=("owner/name-v1.0",), subset="en", split="test", revision="abc")
    assert len(list(open_documents(config).walk(0, 0))) == 3
    assert calls == [(("owner/name-v1.0", "en"), {"split": "test", "revision": "abc", "streaming": True})]
    with pytest.raises(UserError, match=r"'body', but 'owner/name' has the columns text, n"):
        open_hub("owner/name", "body", subset=None, split="train", revision=None)


def test_an_unreachable_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the hub dataset 'owner/name' cannot be opened"):
        open_documents(DataConfig(text=("owner/name",)))
