"""Live activations: which tokens become rows, their provenance, and non-finite values."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from panscope.activations.live import LiveActivations
from panscope.types import ActivationBatch, NonFiniteError, TokenBatch
from tests.support.fake_lm import MLP, RESID, FakeLm, FakeReading, FakeTokens, all_tokens


def test_every_text_row_once_in_order_with_its_provenance() -> None:
    lm = FakeLm()
    batches = list(LiveActivations(lm, FakeTokens(8), (MLP, RESID)))
    assert lm.passes == len(batches) == 4
    rows = ActivationBatch.concatenate(batches)
    assert rows.token_ids.tolist() == all_tokens(8)
    assert torch.equal(rows.document_ids, rows.token_ids // 100)
    assert torch.equal(rows.positions, rows.token_ids % 100)
    assert list(rows.rows) == [MLP, RESID]
    tokens, positions = rows.token_ids.float(), rows.positions.float()
    assert torch.equal(rows.rows[RESID], torch.stack([tokens, positions, torch.ones(len(rows))], dim=1))
    assert torch.equal(rows.rows[MLP], torch.stack([-tokens, 2 * positions], dim=1))


def test_special_tokens_can_be_rows_of_zeros() -> None:
    """Every token that is not padding gives a row: zeros for BOS (0), and the usual row for text."""
    zeroed = ActivationBatch.concatenate(list(LiveActivations(FakeLm(), FakeTokens(8), (MLP, RESID), special="zero")))
    dropped = ActivationBatch.concatenate(list(LiveActivations(FakeLm(), FakeTokens(8), (MLP, RESID))))
    bos = zeroed.positions == 0
    assert int(bos.sum()) == 8
    for site in (MLP, RESID):
        assert zeroed.rows[site][bos].count_nonzero() == 0
        assert torch.equal(zeroed.rows[site][~bos], dropped.rows[site])
    assert torch.equal(zeroed.token_ids[~bos], dropped.token_ids)


def test_a_pass_without_text_is_skipped() -> None:
    class BosOnly(FakeTokens):
        def __next__(self) -> TokenBatch:
            batch = super().__next__()
            empty = self.next % 4 == 0
            content = torch.zeros_like(batch.content) if empty else batch.content
            return TokenBatch(batch.token_ids, batch.attention_mask, content, batch.document_ids, batch.positions)

    lm = FakeLm()
    batches = list(LiveActivations(lm, BosOnly(8), (RESID,)))
    assert lm.passes == len(batches) == 2
    assert {int(i) for batch in batches for i in batch.document_ids} == {0, 1, 4, 5}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_named(bad: float) -> None:
    class BadLm(FakeLm):
        def run(self, token_ids: Tensor, attention_mask: Tensor, *, read: Sequence) -> FakeReading:
            reading = super().run(token_ids, attention_mask, read=read)
            reading.activations[MLP][token_ids >= 302, 1] = bad
            return reading

    live = LiveActivations(BadLm(), FakeTokens(8), (RESID, MLP))
    next(live)
    with pytest.raises(NonFiniteError, match=r"site 'L01\.mlp_out' are not finite at document 3, position 2;"):
        next(live)


def test_a_resumed_source_continues() -> None:
    live = LiveActivations(FakeLm(), FakeTokens(8), (RESID,))
    next(live)
    again = LiveActivations(FakeLm(), FakeTokens(8), (RESID,))
    again.load_state_dict(live.state_dict())
    expected = ActivationBatch.concatenate(list(live))
    found = ActivationBatch.concatenate(list(again))
    assert torch.equal(found.rows[RESID], expected.rows[RESID])
    assert found.token_ids.tolist() == all_tokens(8)[len(all_tokens(2)) :]
