"""Token streams, compared with a simple packing of whole texts, and their resumption."""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panscope.data import tokens as tokens_module
from panscope.data.documents import LocalDocuments
from panscope.data.source import is_in_part
from panscope.data.tokens import TokenStream
from panscope.types import TokenBatch, UserError
from tests.support.word_text import WordTokenizer, config, words

Write = Callable[[list[str]], LocalDocuments]
PACKINGS = ("documents", "stream")
same_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)


def _stream(documents: LocalDocuments, tokenizer: WordTokenizer | None = None, **options: Any) -> TokenStream:
    given = {"part": "all", "seed": 0, "epochs": 1} | {
        k: options.pop(k) for k in ("part", "seed", "epochs", "keep_rest") if k in options
    }
    return TokenStream(documents, tokenizer or WordTokenizer(), config(**options), **given)


def _sequences(batches: list[TokenBatch]) -> list[list[tuple[int, int]]]:
    """Every sequence as (token, document) pairs, without padding."""
    found = []
    for batch in batches:
        for tokens, documents, mask in zip(batch.token_ids, batch.document_ids, batch.attention_mask, strict=True):
            found.append(list(zip(tokens[mask].tolist(), documents[mask].tolist(), strict=True)))
    return found


def _packed_plainly(documents: LocalDocuments, packing: str, tokenizer: WordTokenizer, seed: int, epoch: int) -> list:
    """The expected sequences, from all documents at once, with context 8."""
    walked = [(d.number, tokenizer.encode([d.text])[0]) for d in documents.walk(seed, epoch)]
    full = [(number, tokens) for number, tokens in walked if tokens]
    if packing == "documents":
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return [[(token, number) for token in (bos + tokens)[:8]] for number, tokens in full]
    joined: list[tuple[int, int]] = []
    for number, tokens in full:
        if joined and tokenizer.eos_id is not None:
            joined.append((tokenizer.eos_id, joined[-1][1]))
        joined += [(token, number) for token in tokens]
    return [joined[i : i + 8] for i in range(0, len(joined) - 7, 8)]


def _assert_same(a: list[TokenBatch], b: list[TokenBatch]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for name, value in vars(x).items():
            assert torch.equal(value, getattr(y, name)), name


def _is_held_out(text: str) -> bool:
    return is_in_part(text, "held_out", 0.3)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("special", [(1, 2), (None, None), (1, 1)])
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=30), seed=st.integers(0, 5))
@same_file
def test_packing_equals_the_simple_implementation(
    write: Write, packing: str, special: tuple[int | None, int | None], lengths: list[int], seed: int
) -> None:
    documents, tokenizer = write(words(lengths)), WordTokenizer(*special)
    expected = [_packed_plainly(documents, packing, tokenizer, seed, epoch) for epoch in (0, 1)]
    stream = _stream(documents, tokenizer, packing=packing, seed=seed, epochs=2)
    if not expected[0]:
        with pytest.raises(UserError, match=r"the whole part of x\.jsonl has too little text for one sequence"):
            next(stream)
        return
    batches = list(stream)
    assert _sequences(batches) == expected[0] + expected[1]
    assert [len(batch.token_ids) for batch in batches[:-1]] == [3] * (len(batches) - 1)


@pytest.mark.parametrize("chunk", [1, 2, 64])
@pytest.mark.parametrize("packing", PACKINGS)
def test_chunks_change_nothing(write: Write, packing: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, tokenizer = write(words([3, 0, 9, 5, 1, 30, 2, 8])), WordTokenizer()
    monkeypatch.setattr(tokens_module, "CHUNK_DOCUMENTS", chunk)
    batches = list(_stream(documents, tokenizer, packing=packing))
    assert tokenizer.longest_call <= chunk
    assert _sequences(batches) == _packed_plainly(documents, packing, tokenizer, 0, 0)


def test_only_the_head_of_a_long_document_is_tokenised(write: Write) -> None:
    texts = words([5_000, 3])
    texts.append(" ".join(f"{7:040d}" for _ in range(50)))  # the head has too few tokens because these words are long
    for packing, read in (("documents", 50 * 41 - 1), ("stream", len(texts[0]))):
        tokenizer = WordTokenizer()
        documents = write(texts)
        assert _sequences(list(_stream(documents, tokenizer, packing=packing))) == _packed_plainly(
            documents, packing, WordTokenizer(), 0, 0
        )
        assert tokenizer.longest_text == read


def test_a_chunk_ends_at_many_characters(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, tokenizer = write(words([5] * 20)), WordTokenizer()
    monkeypatch.setattr(tokens_module, "CHUNK_CHARACTERS", 25)
    assert len(_sequences(list(_stream(documents, tokenizer)))) == 20
    assert 1 < tokenizer.longest_call <= 3


@pytest.mark.parametrize("packing", PACKINGS)
def test_padding_masks_and_positions(write: Write, packing: str) -> None:
    batches = list(_stream(write(["0 1 <pad> 2", "3", "4 5 6 7 8 9 10 11 12"]), packing=packing))
    for batch in batches:
        lengths = batch.attention_mask.sum(dim=1)
        assert batch.token_ids.shape[1] == lengths.max()
        places = torch.arange(batch.token_ids.shape[1]).expand_as(batch.token_ids)
        assert torch.equal(batch.attention_mask, places < lengths[:, None])
        assert torch.equal(batch.positions, places)
        assert torch.equal(batch.document_ids == -1, ~batch.attention_mask)
        assert torch.equal(batch.content, batch.attention_mask & (batch.token_ids >= 10))


def test_every_document_is_in_exactly_one_part(write: Write) -> None:
    texts = words([3] * 60)
    documents = write(texts)

    def part(name: str) -> set[int]:
        sequences = _sequences(list(_stream(documents, part=name)))
        numbers = [sequence[0][1] for sequence in sequences]
        assert len(set(numbers)) == len(numbers)
        return set(numbers)

    assert part("held_out") == {i for i, text in enumerate(texts) if _is_held_out(text)}
    assert part("training") == set(range(60)) - part("held_out")
    assert part("all") == set(range(60))
    assert 5 < len(part("held_out")) < 35


def test_the_order_is_a_function_of_the_seed_and_new_each_epoch(write: Write) -> None:
    documents = write(words([3] * 40))
    runs = [_sequences(list(_stream(documents, seed=seed, epochs=2))) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
    assert runs[0][:40] != runs[0][40:]
    assert sorted(runs[0][:40]) == sorted(runs[0][40:])


def test_an_endless_stream_counts_its_epochs_and_fills_every_batch(write: Write) -> None:
    stream = _stream(write(words([3] * 4)), epochs=None)
    batches, epochs = [], []
    for _ in range(8):
        batches.append(next(stream))
        epochs.append(stream.epoch)
    assert epochs == [0, 1, 2, 2, 3, 4, 5, 5]
    assert {len(batch.token_ids) for batch in batches} == {3}
    numbers = [sequence[0][1] for sequence in _sequences(batches)]
    assert all(sorted(numbers[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 24, 4))


@pytest.mark.parametrize("packing", PACKINGS)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=4, max_size=30),
    stop=st.integers(0, 30),
    chunk=st.sampled_from([1, 3, 64]),
    sequences=st.integers(1, 5),
    epochs=st.sampled_from([1, 2, None]),
)
@same_file
def test_a_resumed_stream_gives_the_same_batches(
    write: Write, packing: str, lengths: list[int], stop: int, chunk: int, sequences: int, epochs: int | None
) -> None:
    documents = write(words([9, *lengths]))

    def fresh() -> TokenStream:
        return _stream(documents, packing=packing, sequences=sequences, epochs=epochs, seed=7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "CHUNK_DOCUMENTS", chunk)
        stream = fresh()
        for _, _batch in zip(range(stop), stream, strict=False):
            pass
        state, epoch = stream.state_dict(), stream.epoch
        expected = [batch for _, batch in zip(range(10), stream, strict=False)]
        resumed = fresh()
        resumed.load_state_dict(state)
        assert resumed.epoch == epoch
        assert str(resumed.state_dict()) == str(state)
        _assert_same([batch for _, batch in zip(range(10), resumed, strict=False)], expected)


def test_a_state_is_small(write: Write) -> None:
    stream = _stream(write(words([50] * 200)), packing="stream")
    for _ in range(100):
        next(stream)
    state = stream.state_dict()
    assert len(state["packer"]["token_ids"]) < 8
    assert len(str(state)) < 1_000


def test_a_part_without_text_is_an_error(write: Write) -> None:
    documents = write(["0 1 2", " "])
    part, other = ("held_out", "training") if not _is_held_out("0 1 2") else ("training", "held_out")
    assert len(list(_stream(documents, part=other))) == 1
    name = {"held_out": "held-out"}.get(part, part)
    with pytest.raises(UserError, match=f"the {name} part of x.jsonl has too little text for one sequence"):
        next(_stream(documents, part=part))
    with pytest.raises(UserError, match=r"packing 'stream', context 8, held_out 0\.3"):
        next(_stream(documents, packing="stream", epochs=None))


def test_resuming_with_other_text_is_an_error(write: Write) -> None:
    state = _stream(write(words([3, 3]))).state_dict()
    with pytest.raises(UserError, match="there are 3 documents, but the checkpoint was written with 2"):
        _stream(write(words([3, 3, 3]))).load_state_dict(state)


def test_memory_does_not_grow_with_the_tokens(write: Write) -> None:
    stream = _stream(write(words([20] * 300)), packing="stream", epochs=None)

    def peak(batches: int) -> int:
        gc.collect()
        tracemalloc.reset_peak()
        for _ in range(batches):
            next(stream)
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        peak(500)  # warms up the caches of libraries
        first = peak(500)  # two epochs
        assert peak(1_500) < 1.1 * first  # six epochs; the tolerance is for cached objects
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 7, 60])
@pytest.mark.parametrize("packing", PACKINGS)
def test_with_keep_rest_no_token_is_lost(write: Write, packing: str, count: int) -> None:
    """`panscope eval --text` uses it; without it a short text with packing "stream" would give no sequence."""
    documents = write(words([1 + number % 5 for number in range(count)]))
    kept = _sequences(list(_stream(documents, packing=packing, context=8, keep_rest=True)))
    plain = _packed_plainly(documents, packing, WordTokenizer(), 0, 0)
    assert kept[: len(plain)] == plain
    rest = [token for sequence in kept[len(plain) :] for token in sequence]
    assert len(kept) - len(plain) <= 1
    assert len(rest) < 8
    content = [
        (token, number) for sequence in kept for token, number in sequence if token not in WordTokenizer().special_ids
    ]
    walked = [(token, d.number) for d in documents.walk(0, 0) for token in WordTokenizer().encode([d.text])[0]]
    assert content == walked
