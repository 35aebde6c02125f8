"""Live activations: the language model runs when rows are requested, one pass for all sites (Llama Scope, app. A).

Only text tokens become rows; BOS, EOS, other special tokens and padding do not.

Shape letters: N sequences, T tokens a sequence, B rows of one pass, D width of a site.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from panscope.activations.source import TokenSource
from panscope.types import ActivationBatch, NonFiniteError, Site, TokenBatch

Special = Literal["drop", "zero"]
"""Treatment of special tokens: no row (Gemma Scope, Llama Scope, the Multi-Layer SAE paper), or a row of zeros (the
Multi-Layer SAE code)."""


class HasActivations(Protocol):
    """The result of one pass of the language model."""

    @property
    def activations(self) -> Mapping[Site, Tensor]:
        """[N, T, D] per site."""
        ...


class ReadsSites(Protocol):
    """The interface of the language model that is used here."""

    @property
    def device(self) -> torch.device:
        """The device of its activations."""
        ...

    def run(self, token_ids: Tensor, attention_mask: Tensor, *, read: Sequence[Site]) -> HasActivations:
        """One pass over [N, T] tokens that reads the sites `read`."""
        ...


class LiveActivations:
    """An iterator of ActivationBatch: all text rows of one pass, in order of sequences, on the model's device."""

    def __init__(
        self, lm: ReadsSites, tokens: TokenSource, sites: Sequence[Site], *, special: Special = "drop"
    ) -> None:
        """Read `sites` of `lm` on the batches of `tokens`; special tokens give no rows, or rows of zeros."""
        assert sites, "live activations need a site to read"
        self._lm, self._tokens, self._sites, self._special = lm, tokens, tuple(sites), special

    @property
    def device(self) -> torch.device:
        """The device of the rows, which is the language model's."""
        return self._lm.device

    def __iter__(self) -> "LiveActivations":
        return self

    def __next__(self) -> ActivationBatch:
        """The rows of the next pass with text; raises NonFiniteError if a value is NaN or infinite."""
        for tokens in self._tokens:
            if tokens.content.any():
                return self._read(tokens)
        raise StopIteration

    def _read(self, tokens: TokenBatch) -> ActivationBatch:
        whole = dict(self._lm.run(tokens.token_ids, tokens.attention_mask, read=self._sites).activations)
        wanted = tokens.content if self._special == "drop" else tokens.attention_mask
        index = wanted.flatten().nonzero().squeeze(1)  # [B] into N x T
        columns = (tokens.token_ids, tokens.document_ids, tokens.positions)
        token_ids, document_ids, positions = (column.flatten()[index].to(self.device) for column in columns)
        index = index.to(self.device)
        rows = {site: whole.pop(site).flatten(0, 1)[index] for site in self._sites}  # frees each [N, T, D] in turn
        if self._special == "zero":
            text = tokens.content.flatten().to(self.device)[index]
            rows = {site: x.masked_fill(~text[:, None], 0) for site, x in rows.items()}
        batch = ActivationBatch(rows, token_ids, document_ids, positions)
        _check_finite(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The state of the token source, which is the only state between two passes."""
        return {"tokens": self._tokens.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the pass after `state`."""
        self._tokens.load_state_dict(state["tokens"])


def _check_finite(batch: ActivationBatch) -> None:
    """Raise NonFiniteError naming the first non-finite row; synchronises with the device once per pass."""
    if torch.stack([torch.isfinite(x).all() for x in batch.rows.values()]).all():
        return
    for site, x in batch.rows.items():
        bad = (~torch.isfinite(x).all(dim=1)).nonzero()
        if len(bad):
            row = int(bad[0])
            raise NonFiniteError(
                f"the activations of site {str(site)!r} are not finite at document {int(batch.document_ids[row])}, "
                f"position {int(batch.positions[row])}; load the model in bfloat16 or float32, or remove this text"
            )
