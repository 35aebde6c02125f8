"""Rollouts: a language model's own responses, sampled at a temperature from all tokens (Gemma Scope, section 4.5).

No top-k and no top-p: tokens are sampled from the model's distribution. There is no padding, so padding cannot change
the distribution: all sequences of a batch grow by one token at a time from the length of the shortest prompt on, and in
a longer prompt the next token is the prompt's own until its end.

The caller provides the random numbers of each sequence, one per token: the sampled token is the one at which the
cumulative distribution first exceeds that number. The other sequences of the batch change nothing but the last bits of
a sum.

Shape letters: N sequences, T tokens of the longest of them, L maximum tokens of a response, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.lms.hf_versions import cache_argument, cache_in_output
from panscope.lms.model import LanguageModel
from panscope.types import NonFiniteError


@dataclass(frozen=True)
class Rollout:
    """The response sampled for one prompt."""

    tokens: list[int]
    """The tokens without the one that ended the response."""
    has_ended: bool
    """Whether the model ended it: with EOS, or with BOS, which begins another document."""
    drawn: int
    """Tokens drawn, including the one that ended it."""
    surprise: float
    """The sum over drawn tokens of -log p, in nats, at the temperature."""
    entropy: float
    """The sum over drawn tokens of the entropy of the distribution each was drawn from, in nats."""


@torch.no_grad()
def roll_out(
    lm: LanguageModel, prompts: Sequence[list[int]], draws: Tensor, *, temperature: float = 1.0
) -> list[Rollout]:
    """Responses to `prompts`, token ids that begin with BOS if the model has one, up to L tokens or the context's end.

    `draws` [N, L] float64 in [0, 1) are the random numbers. Raises NonFiniteError if probabilities are not finite.
    """
    assert len(prompts) == len(draws)
    assert all(0 < len(prompt) < lm.context for prompt in prompts), "a prompt is empty or fills the context"
    batch = _Batch(lm, prompts, draws, temperature)
    cache_name = cache_argument(lm.model)
    cache, seen = None, 0
    while batch.is_unfinished:
        new = batch.tokens[:, seen : batch.length]
        output = lm.model(input_ids=new, use_cache=True, logits_to_keep=1, **{cache_name: cache})
        cache, seen = cache_in_output(output), batch.length
        batch.append(output.logits[:, -1])
    return batch.rollouts()


class _Batch:
    """Sequences that are extended together, one token at a time."""

    def __init__(self, lm: LanguageModel, prompts: Sequence[list[int]], draws: Tensor, temperature: float) -> None:
        self._temperature, self._draws = temperature, draws.to(lm.device, torch.float64)
        lengths = [len(prompt) for prompt in prompts]
        longest = min(max(lengths) + draws.shape[1], lm.context)
        self.tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)  # [N, T]
        for row, prompt in zip(self.tokens, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        self.tokens = self.tokens.to(lm.device)
        self.length = min(lengths)
        self._starts = torch.tensor(lengths, device=lm.device)  # [N]
        self._stops = (self._starts + draws.shape[1]).clamp(max=lm.context)  # [N]
        self._closing = torch.tensor(sorted(lm.closing_ids), dtype=torch.int64, device=lm.device)
        zeros = torch.zeros(len(prompts), dtype=torch.float64, device=lm.device)
        self._has_ended, self._drawn = zeros.bool(), zeros.long()
        self._surprise, self._entropy = zeros, zeros

    @property
    def is_unfinished(self) -> bool:
        """Whether any response has neither ended nor reached its maximum length."""
        return bool((~self._has_ended & (self._stops > self.length)).any())

    def append(self, logits: Tensor) -> None:
        """Append the next token of every sequence: the prompt's own, or one sampled from `logits` [N, V]."""
        position = self.length
        log_p = torch.log_softmax(logits.double() / self._temperature, dim=1)
        p = log_p.exp()
        index = (position - self._starts).clamp(0, self._draws.shape[1] - 1)[:, None]
        drawn = _sample(p, self._draws.gather(1, index))
        is_drawn = (position >= self._starts) & (position < self._stops) & ~self._has_ended
        self.tokens[:, position] = torch.where(is_drawn, drawn, self.tokens[:, position])
        self._surprise = self._surprise - is_drawn * log_p.gather(1, drawn[:, None]).squeeze(1)
        self._entropy = self._entropy + is_drawn * torch.special.entr(p).sum(dim=1)
        self._drawn += is_drawn
        self._has_ended |= is_drawn & torch.isin(drawn, self._closing)
        self.length += 1

    def rollouts(self) -> list[Rollout]:
        """The response of each sequence; raises NonFiniteError if a probability was not finite."""
        if not torch.isfinite(self._surprise + self._entropy).all():
            raise NonFiniteError(
                "the language model's probabilities are NaN or infinite: load it in bfloat16 or float32"
            )
        columns = (self.tokens, self._starts, self._has_ended, self._drawn, self._surprise, self._entropy)
        return [
            Rollout(tokens[start : start + drawn - has_ended], has_ended, drawn, surprise, entropy)
            for tokens, start, has_ended, drawn, surprise, entropy in zip(*(c.tolist() for c in columns), strict=True)
        ]


def _sample(p: Tensor, draws: Tensor) -> Tensor:
    """The tokens [N] at which the cumulative distribution [N, V] first exceeds the draw [N, 1]."""
    cumulative = p.cumsum(dim=1)
    return (cumulative <= draws * cumulative[:, -1:]).sum(dim=1).clamp(max=p.shape[1] - 1)
