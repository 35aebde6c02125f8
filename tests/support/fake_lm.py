"""A language model whose rows say where they came from, and token batches of numbered tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panscope.types import Site, TokenBatch

RESID = Site(0, "resid_post")
MLP = Site(1, "mlp_out")


@dataclass(frozen=True)
class FakeReading:
    activations: Mapping[Site, Tensor]


class FakeLm:
    """At RESID a row is (token, position, 1); at MLP it is (-token, 2 * position)."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.passes = 0

    def run(self, token_ids: Tensor, attention_mask: Tensor, *, read: Sequence[Site]) -> FakeReading:
        self.passes += 1
        token = token_ids.float()
        position = torch.arange(token_ids.shape[1]).expand_as(token).float()
        sites = {
            RESID: torch.stack([token, position, torch.ones_like(token)], dim=2),
            MLP: torch.stack([-token, 2 * position], dim=2),
        }
        sites[RESID][~attention_mask] = torch.nan  # what a model makes of padding is nobody's business
        return FakeReading({site: sites[site] for site in read})


class FakeTokens:
    """Sequences of two to five tokens after BOS (0): no token occurs twice, document i holds the tokens 100 i + k."""

    def __init__(self, documents: int | None, *, sequences: int = 2):
        self.documents, self.sequences, self.next = documents, sequences, 0

    def __iter__(self) -> "FakeTokens":
        return self

    def __next__(self) -> TokenBatch:
        if self.documents is not None and self.next >= self.documents:
            raise StopIteration
        numbers = torch.arange(self.next, self.next + self.sequences)
        self.next += self.sequences
        position = torch.arange(6).expand(self.sequences, 6).contiguous()
        lengths = 3 + numbers % 4
        mask = position < lengths[:, None]
        tokens = torch.where(mask & (position > 0), 100 * numbers[:, None] + position, 0)
        documents = torch.where(mask, numbers[:, None], -1)
        return TokenBatch(tokens, mask, mask & (position > 0), documents, position)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


def all_tokens(documents: int) -> list[int]:
    """Every text token of the first `documents` documents, in order."""
    return [100 * i + k for i in range(documents) for k in range(1, 3 + i % 4)]
