"""How well a language model predicts the text of one token batch, before and after it was tampered with.

Place t of a sequence counts if token t+1 is content: predictions of BOS, EOS and padding never do. Log-probabilities
are fp32 log-softmax whatever the model's precision; what is summed later is float64.

Shape letters: N sequences, T tokens a sequence, V vocabulary, P predicted tokens of the batch, Q of one sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.types import TokenBatch


@dataclass(frozen=True)
class Score:
    """One forward pass against the text and against the clean pass."""

    ce: Tensor
    """[P] float64, -log p(next token)."""
    kl: Tensor
    """[P] float64, KL(clean || this pass)."""


class Predictions:
    """The clean log-probabilities of one batch, and the scores of other passes over the same batch."""

    def __init__(self, batch: TokenBatch, clean_logits: Tensor) -> None:
        """`clean_logits` [N, T, V] are not kept; their log-probabilities and probabilities [P, V] are."""
        content = batch.content.to(clean_logits.device)
        self._places = content[:, 1:]
        self._targets = batch.token_ids.to(clean_logits.device)[:, 1:]
        self._clean = list(self._log_probs(clean_logits))
        self._clean_probs = [clean.exp() for clean in self._clean]
        self.ce_clean = torch.cat([self._ce(n, clean) for n, clean in enumerate(self._clean)])

    def score(self, logits: Tensor) -> Score:
        """Judge the logits [N, T, V] of another pass, a sequence at a time so that only one is held as fp32."""
        parts = [(self._ce(n, q), self._kl(n, q)) for n, q in enumerate(self._log_probs(logits))]
        return Score(torch.cat([ce for ce, _ in parts]), torch.cat([kl for _, kl in parts]))

    def losses(self, logits: Tensor) -> Tensor:
        """[P] float64, -log p(next token) of another pass with logits [N, T, V]."""
        return torch.cat([self._ce(n, q) for n, q in enumerate(self._log_probs(logits))])

    def _log_probs(self, logits: Tensor) -> Iterator[Tensor]:
        """[Q, V] fp32 of each sequence."""
        for n, places in enumerate(self._places):
            yield logits[n, :-1][places].float().log_softmax(dim=-1)

    def _ce(self, n: int, log_probs: Tensor) -> Tensor:
        targets = self._targets[n][self._places[n]]
        return -log_probs.gather(1, targets[:, None]).squeeze(1).double()

    def _kl(self, n: int, log_probs: Tensor) -> Tensor:
        return (self._clean_probs[n] * (self._clean[n] - log_probs)).sum(dim=1, dtype=torch.float64)
