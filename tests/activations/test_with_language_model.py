"""From a text file to shuffled rows of a trained language model, with interruption and resumption."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from panscope.activations.live import LiveActivations
from panscope.activations.shuffle import SHUFFLES
from panscope.data.documents import DataConfig, open_documents
from panscope.data.tokens import TokenStream
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.types import ActivationBatch, Site

SITES = (Site(1, "resid_post"), Site(2, "attn_z"), Site(3, "mlp_out"))


@pytest.fixture(scope="module")
def lm(shared: Path) -> LanguageModel:
    return load(LanguageModelConfig(path=str(shared / "models" / "stories260K")))


def _config(shared: Path, packing: str) -> DataConfig:
    text = (str(shared / "text" / "tinystories.jsonl"),)
    return DataConfig.read({"text": text, "packing": packing, "context": 32, "sequences": 8}, "data")


@pytest.mark.parametrize(("packing", "kind"), [("documents", "buckets"), ("stream", "pool")])
def test_a_resumed_run_sees_the_same_rows(lm: LanguageModel, shared: Path, packing: str, kind: str) -> None:
    config = _config(shared, packing)
    documents = open_documents(config)

    def rows():
        tokens = TokenStream(documents, lm.tokenizer, config, part="training", seed=3, epochs=None)
        return SHUFFLES[kind](LiveActivations(lm, tokens, SITES), rows=1_000, batch=100, seed=3)

    whole = rows()
    expected = list(islice(whole, 18))
    stopped = rows()
    list(islice(stopped, 13))
    resumed = rows()
    resumed.load_state_dict(stopped.state_dict())
    for a, b in zip(islice(resumed, 5), expected[13:], strict=True):
        assert all(torch.equal(a.rows[site], b.rows[site]) for site in SITES)
        assert torch.equal(a.token_ids, b.token_ids)
        assert torch.equal(a.document_ids, b.document_ids)


def test_rows_are_those_of_the_document_they_name(lm: LanguageModel, shared: Path) -> None:
    config = _config(shared, "documents")
    documents = open_documents(config)
    tokens = TokenStream(documents, lm.tokenizer, config, part="held_out", seed=0, epochs=1)
    rows = ActivationBatch.concatenate(list(islice(LiveActivations(lm, tokens, SITES), 2)))
    number = int(rows.document_ids[-1])
    text = [document.text for document in documents.walk(0, 0) if document.number == number]
    ids = [lm.tokenizer.bos_id, *lm.tokenizer.encode(text)[0]][:32]
    mine = rows.select(rows.document_ids == number)
    assert mine.token_ids.tolist() == ids[1:]
    assert mine.positions.tolist() == list(range(1, len(ids)))
    alone = lm.run(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), read=SITES).activations
    for site in SITES:  # float32 matrix products may round differently in other batch sizes
        torch.testing.assert_close(mine.rows[site], alone[site][0, 1:], rtol=1e-4, atol=1e-4)
