"""How well a language model predicts the text of one token batch, before and after it was tampered with.

Place t of a sequence counts if token t+1 is content: predictions of BOS, EOS and padding never do. With `loss_mask`
"input" it counts if token t is content and t+1 is no padding, as in SAEBench. Log-probabilities are fp32 log-softmax
however coarse the model's precision, in float64 if the model is; what is summed later is float64.

Shape letters: N sequences, T tokens a sequence, V vocabulary, P predicted tokens of the batch, Q of some sequences.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from panscope.evals.outcome import Losses
from panscope.types import TokenBatch

LossMask = Literal["target", "input"]
"""Whether the token that is predicted or the one it is predicted from must be content."""
_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Logits that are processed at a time, unless one sequence has more: few enough for a CPU's cache, enough for a GPU."""


def predicted_places(batch: TokenBatch, loss_mask: LossMask) -> Tensor:
    """[N, T - 1] bool: the places whose prediction of the next token counts."""
    if loss_mask == "target":
        return batch.content[:, 1:]
    return batch.content[:, :-1] & batch.attention_mask[:, 1:]


class Predictions:
    """The clean log-probabilities of one batch, and the losses of other passes over the same batch."""

    def __init__(self, batch: TokenBatch, clean_logits: Tensor, loss_mask: LossMask) -> None:
        """`clean_logits` [N, T, V] are not kept; their log-probabilities and probabilities [P, V] are."""
        n, t, vocabulary = clean_logits.shape
        together = max(1, _ENTRIES.get(clean_logits.device.type, 1 << 24) // (t * vocabulary))
        self._some = [slice(first, first + together) for first in range(0, n, together)]
        counted = torch.cat([predicted_places(batch, loss_mask), torch.zeros(n, 1, dtype=torch.bool)], dim=1)
        targets = batch.token_ids.roll(-1, dims=1)
        device = clean_logits.device
        self._places = [counted[some].flatten().nonzero().squeeze(1).to(device) for some in self._some]
        self._targets = [targets[some][counted[some]].to(device) for some in self._some]
        self._clean = list(self._log_probs(clean_logits))
        self._clean_probs = [clean.exp() for clean in self._clean]
        self.ce_clean = torch.cat([self._ce(number, clean) for number, clean in enumerate(self._clean)])

    def losses(self, logits: Tensor, *, divergences: bool = True) -> Losses:
        """Judge the logits [N, T, V] of another pass against the text and, unless left out, against the clean one."""
        parts = [self._losses(number, q, divergences) for number, q in enumerate(self._log_probs(logits))]
        return Losses(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _losses(self, number: int, log_probs: Tensor, divergences: bool) -> tuple[Tensor, Tensor, Tensor]:
        """[Q] the loss and the divergences in both directions; `log_probs` [Q, V] are used up."""
        ce = self._ce(number, log_probs)
        if not divergences:
            return ce, ce.new_zeros(0), ce.new_zeros(0)
        apart = self._clean[number] - log_probs
        reverse = -log_probs.exp_().mul_(apart).sum(dim=1, dtype=torch.float64)
        return ce, apart.mul_(self._clean_probs[number]).sum(dim=1, dtype=torch.float64), reverse

    def _log_probs(self, logits: Tensor) -> Iterator[Tensor]:
        """[Q, V] of a few sequences at a time, in fp32 or wider."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        for some, places in zip(self._some, self._places, strict=True):
            yield logits[some].flatten(0, 1).index_select(0, places).to(dtype).log_softmax(dim=-1)

    def _ce(self, number: int, log_probs: Tensor) -> Tensor:
        return -log_probs.gather(1, self._targets[number][:, None]).squeeze(1).double()
