"""What came by while a model ran: activations and codes of the last pass, or of all passes that one cache joins.

A pass that begins a sequence puts what was before aside; one that goes on with a cache, as in `generate`, adds to it.
Where a cache was cut (assisted generation takes tokens back), so is what came of them.

Shape letters: N sequences, T tokens of a pass, D width of a site.
"""

from collections.abc import Hashable

import torch
from torch import Tensor

from panscope.analysis.codes import Codes, in_time


class Record:
    """Pieces [N, T] by name, pass after pass."""

    def __init__(self) -> None:
        self.first = 0
        """The position of the first token that was seen: above 0 where passes went before."""
        self.past = 0
        """The position at which the pass under way begins."""
        self._activations: dict[Hashable, list[Tensor]] = {}
        self._codes: dict[Hashable, list[Codes]] = {}

    def begin(self, past: int) -> None:
        """A pass begins at position `past`."""
        self.past = past
        kept = past - self.first
        whole = all(_tokens(pieces) >= kept for pieces in (*self._activations.values(), *self._codes.values()))
        if past == 0 or kept <= 0 or not whole or not (self._activations or self._codes):
            self.first = past
            self._activations.clear()
            self._codes.clear()
            return
        for key, pieces in self._activations.items():
            if _tokens(pieces) > kept:
                self._activations[key] = [torch.cat(pieces, dim=1)[:, :kept]]
        for key, own in self._codes.items():
            if _tokens(own) > kept:
                self._codes[key] = [in_time(own).first_tokens(kept)]

    def add(self, key: Hashable, tensor: Tensor) -> None:
        """Activations [N, T, D] of this pass."""
        self._activations.setdefault(key, []).append(tensor)

    def add_codes(self, key: Hashable, codes: Codes) -> None:
        """Codes [N, T] of this pass."""
        self._codes.setdefault(key, []).append(codes)

    def has(self, key: Hashable) -> bool:
        """Whether anything came under that key."""
        return key in self._activations or key in self._codes

    @property
    def tokens(self) -> int:
        """T of all passes."""
        return max((_tokens(pieces) for pieces in (*self._activations.values(), *self._codes.values())), default=0)

    def activations(self, key: Hashable) -> Tensor:
        """[N, T of all passes, D]; the very tensor of a single pass. Raises KeyError where nothing came."""
        pieces = self._activations[key]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def codes(self, key: Hashable) -> Codes:
        """[N, T of all passes]; the very codes of a single pass. Raises KeyError where nothing came."""
        return in_time(self._codes[key])


def _tokens(pieces: list[Tensor] | list[Codes]) -> int:
    return sum(piece.leading[1] if isinstance(piece, Codes) else piece.shape[1] for piece in pieces)
