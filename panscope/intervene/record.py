"""What came by while a model ran: activations and codes of the last pass, or of all passes that one cache joins.

A pass that begins a sequence puts what was before aside; one that goes on with the same cache, as in `generate`, adds
to it. Where a cache was cut (assisted generation takes tokens back), so is what came of them.

Shape letters: N sequences, T tokens of a pass, D width of a site.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from panscope.lms.site_resolver import PassStart
from panscope.loading.codes import Codes, concatenated


class Record:
    """Pieces [N, T] by name, pass after pass."""

    def __init__(self) -> None:
        self.first = 0
        """The position of the first token that was seen: above 0 where passes went before."""
        self.past = 0
        """The position at which the pass under way begins."""
        self._activations: dict[Hashable, list[Tensor]] = {}
        self._codes: dict[Hashable, list[Codes]] = {}
        self._lengths: dict[Hashable, int] = {}
        """T of all pieces; a key of activations is none of codes."""
        self._sequences = 0
        self._under_way = False
        self._given: Any = None
        """The cache that the last pass was given: kept, as it is cut after that pass where tokens are taken back."""
        self._held = 0
        """How many tokens that cache held when the pass was over."""
        self._cache: Callable[[], Any] = _nothing
        """The cache that holds what was seen, as long as others keep it."""

    def begin(self, entry: PassStart) -> None:
        """A pass begins."""
        kept = entry.past - self.first
        same = entry.cache is not None and entry.cache is self._cache() and entry.sequences == self._sequences
        if not same or kept <= 0 or min(self._lengths.values(), default=0) < kept:
            self.first = entry.past
            for pieces in (self._activations, self._codes, self._lengths):
                pieces.clear()
        self.past, self._sequences, self._given, self._under_way = entry.past, entry.sequences, entry.cache, True
        self._cut(entry.past)

    def end(self, cache: Any) -> None:
        """The pass is over, and gave this cache; None if it has none."""
        self._under_way = False
        self._held = 0 if self._given is None else int(self._given.get_seq_length())
        self._cache = _nothing if cache is None else weakref.ref(cache)

    def close(self) -> None:
        """There are no more passes."""
        self._settle()
        self._given = None

    def add(self, key: Hashable, tensor: Tensor) -> None:
        """Activations [N, T, D] of this pass."""
        self._activations.setdefault(key, []).append(tensor)
        self._lengths[key] = self._lengths.get(key, 0) + tensor.shape[1]

    def add_codes(self, key: Hashable, codes: Codes) -> None:
        """Codes [N, T] of this pass."""
        self._codes.setdefault(key, []).append(codes)
        self._lengths[key] = self._lengths.get(key, 0) + codes.leading[1]

    def has(self, key: Hashable) -> bool:
        """Whether anything came under that key."""
        return key in self._lengths

    @property
    def tokens(self) -> int:
        """T of all passes."""
        self._settle()
        return max(self._lengths.values(), default=0)

    def activations(self, key: Hashable) -> Tensor:
        """[N, T of all passes, D]; the very tensor of a single pass. Raises KeyError where nothing came."""
        self._settle()
        pieces = self._activations[key]
        if len(pieces) > 1:
            self._activations[key] = pieces = [torch.cat(pieces, dim=1)]
        return pieces[0]

    def codes(self, key: Hashable) -> Codes:
        """[N, T of all passes]; the very codes of a single pass. Raises KeyError where nothing came."""
        self._settle()
        pieces = self._codes[key]
        if len(pieces) > 1:
            self._codes[key] = pieces = [concatenated(pieces)]
        return pieces[0]

    def _settle(self) -> None:
        """Take back what came of tokens that the cache has given up since the last pass, as drafts that are refused.

        A cache that has given up the whole pass is to be used for another: the last pass is still that one.
        """
        if self._given is None or self._under_way:
            return
        taken = self._held - int(self._given.get_seq_length())
        seen = self.first + max(self._lengths.values(), default=0)
        if 0 < taken < seen - self.past:
            self._held -= taken
            self._cut(seen - taken)

    def _cut(self, position: int) -> None:
        """Forget what came of the tokens from `position` on."""
        kept = position - self.first
        for key, length in self._lengths.items():
            if length <= kept:
                continue
            if key in self._codes:
                self._codes[key] = [concatenated(self._codes[key]).first_tokens(kept)]
            else:
                self._activations[key] = [torch.cat(self._activations[key], dim=1)[:, :kept]]
            self._lengths[key] = kept


def _nothing() -> None:
    return None
