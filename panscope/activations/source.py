"""The interfaces of row sources and token sources: iterators of batches that can be checkpointed and resumed."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from panscope.types import ActivationBatch, TokenBatch


class RowSource(Iterator[ActivationBatch], Protocol):
    """Batches of aligned rows; `load_state_dict` continues with exactly the batches that followed `state_dict`."""

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position of the source: JSON values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`."""
        ...


class TokenSource(Iterator[TokenBatch], Protocol):
    """Token batches, which are resumed in the same manner."""

    def state_dict(self) -> dict[str, Any]:
        """The position of the source: JSON values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `state`."""
        ...
