"""Rollouts: a language model's own responses, sampled at a temperature from all tokens (Gemma Scope, section 4.5).

No top-k and no top-p: the text is distributed as the model says. Nothing is padded, so that padding cannot change the
distribution: all sequences of a batch grow by one token at a time from the length of the shortest prompt on, and a
longer prompt gives its own next token until it is at its end.

Every sequence has its own random numbers, one a token, given by the caller: which token it takes is the place of that
number in the cumulative distribution. What stands beside it in the batch changes nothing but the last bits of a sum.

Shape letters: N sequences, T tokens of the longest of them, L tokens of a response at most, V vocabulary.
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
    """What was sampled after one prompt."""

    tokens: list[int]
    """Without the one that ended it."""
    has_ended: bool
    """By the model itself: with EOS, or with BOS, which begins another document."""
    drawn: int
    """Tokens drawn, the last one too."""
    surprise: float
    """The sum over drawn tokens of -log p, in nats, at the temperature."""
    entropy: float
    """The sum over drawn tokens of the entropy of the distribution each was drawn from, in nats."""


@torch.no_grad()
def roll_out(
    lm: LanguageModel, prompts: Sequence[list[int]], draws: Tensor, *, temperature: float = 1.0
) -> list[Rollout]:
    """Responses to `prompts`, token ids that begin with BOS where there is one, up to L tokens or the context's end.

    `draws` [N, L] float64 in [0, 1) are the random numbers. Raises NonFiniteError if the model gives no probabilities.
    """
    assert len(prompts) == len(draws)
    assert all(0 < len(prompt) < lm.context for prompt in prompts), "a prompt leaves room for a response"
    batch = _Batch(lm, prompts, draws, temperature)
    cache_name = cache_argument(lm.model)
    cache, seen = None, 0
    while batch.is_going:
        given = batch.tokens[:, seen : batch.length]
        output = lm.model(input_ids=given, use_cache=True, logits_to_keep=1, **{cache_name: cache})
        cache, seen = cache_in_output(output), batch.length
        batch.append(output.logits[:, -1])
    return batch.rollouts()


class _Batch:
    """Sequences that grow together."""

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
    def is_going(self) -> bool:
        """Whether any sequence still grows."""
        return bool((~self._has_ended & (self._stops > self.length)).any())

    def append(self, logits: Tensor) -> None:
        """Take the next token of every sequence: the prompt's own, or one drawn from `logits` [N, V]."""
        place = self.length
        log_p = torch.log_softmax(logits.double() / self._temperature, dim=1)
        p = log_p.exp()
        number = (place - self._starts).clamp(0, self._draws.shape[1] - 1)[:, None]
        drawn = _drawn(p, self._draws.gather(1, number))
        is_drawn = (place >= self._starts) & (place < self._stops) & ~self._has_ended
        self.tokens[:, place] = torch.where(is_drawn, drawn, self.tokens[:, place])
        self._surprise = self._surprise - is_drawn * log_p.gather(1, drawn[:, None]).squeeze(1)
        self._entropy = self._entropy + is_drawn * torch.special.entr(p).sum(dim=1)
        self._drawn += is_drawn
        self._has_ended |= is_drawn & torch.isin(drawn, self._closing)
        self.length += 1

    def rollouts(self) -> list[Rollout]:
        """What was drawn in each sequence."""
        if not torch.isfinite(self._surprise + self._entropy).all():
            raise NonFiniteError(
                "the language model gives NaN or infinity in place of probabilities: load it in bfloat16 or float32"
            )
        columns = (self.tokens, self._starts, self._has_ended, self._drawn, self._surprise, self._entropy)
        return [
            Rollout(tokens[start : start + drawn - has_ended], has_ended, drawn, surprise, entropy)
            for tokens, start, has_ended, drawn, surprise, entropy in zip(*(c.tolist() for c in columns), strict=True)
        ]


def _drawn(p: Tensor, draws: Tensor) -> Tensor:
    """[N] the token at which the cumulative distribution [N, V] first exceeds the draw [N, 1]."""
    cumulative = p.cumsum(dim=1)
    return (cumulative <= draws * cumulative[:, -1:]).sum(dim=1).clamp(max=p.shape[1] - 1)
