"""What a source of rows is: an iterator of ActivationBatch that can be stopped and taken up again."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch

from panscope.types import ActivationBatch, TokenBatch


class RowSource(Iterator[ActivationBatch], Protocol):
    """Batches of aligned rows; after `load_state_dict` the very batches follow that followed `state_dict`."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the source stands: JSON values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state`."""
        ...


class TokenSource(Iterator[TokenBatch], Protocol):
    """Token batches, with the same promise."""

    def state_dict(self) -> dict[str, Any]:
        """Where the source stands: JSON values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state`."""
        ...
