"""Activations and codes recorded while a model runs: those of the last pass, or of all passes that share a cache.

A pass that starts a sequence discards earlier records; one that continues with the same cache, as in `generate`, adds
to them. If tokens are removed from the cache (assisted generation rejects drafts), their records are removed too.

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
    """Activations and codes by key, one piece [N, T] per pass."""

    def __init__(self) -> None:
        self.first = 0
        """The position of the first recorded token: above 0 if it was preceded by cached tokens."""
        self.past = 0
        """The position at which the current pass starts."""
        self._activations: dict[Hashable, list[Tensor]] = {}
        self._codes: dict[Hashable, list[Codes]] = {}
        self._lengths: dict[Hashable, int] = {}
        """Total T of the pieces of each key; keys of activations and of codes are distinct."""
        self._sequences = 0
        self._is_in_pass = False
        self._input_cache: Any = None
        """The cache given to the last pass; kept because tokens may be removed from it after that pass."""
        self._cached_tokens = 0
        """Number of tokens in that cache when the pass ended."""
        self._output_cache: Callable[[], Any] = _no_cache
        """A weak reference to the cache that the last pass returned, which contains the recorded tokens."""

    def begin(self, start: PassStart) -> None:
        """Called when a forward pass starts."""
        kept = start.past - self.first
        same = start.cache is not None and start.cache is self._output_cache() and start.sequences == self._sequences
        if not same or kept <= 0 or min(self._lengths.values(), default=0) < kept:
            self.first = start.past
            for pieces in (self._activations, self._codes, self._lengths):
                pieces.clear()
        self.past, self._sequences = start.past, start.sequences
        self._input_cache, self._is_in_pass = start.cache, True
        self._truncate(start.past)

    def end(self, cache: Any) -> None:
        """Called when a forward pass ends, with the cache that it returned, or None."""
        self._is_in_pass = False
        self._cached_tokens = 0 if self._input_cache is None else int(self._input_cache.get_seq_length())
        self._output_cache = _no_cache if cache is None else weakref.ref(cache)

    def close(self) -> None:
        """Called after the last forward pass."""
        self._drop_removed_tokens()
        self._input_cache = None

    def add(self, key: Hashable, tensor: Tensor) -> None:
        """Record activations [N, T, D] of the current pass."""
        self._activations.setdefault(key, []).append(tensor)
        self._lengths[key] = self._lengths.get(key, 0) + tensor.shape[1]

    def add_codes(self, key: Hashable, codes: Codes) -> None:
        """Record codes [N, T] of the current pass."""
        self._codes.setdefault(key, []).append(codes)
        self._lengths[key] = self._lengths.get(key, 0) + codes.leading[1]

    def has(self, key: Hashable) -> bool:
        """Whether anything is recorded under that key."""
        return key in self._lengths

    @property
    def tokens(self) -> int:
        """Total T of the recorded passes."""
        self._drop_removed_tokens()
        return max(self._lengths.values(), default=0)

    def activations(self, key: Hashable) -> Tensor:
        """[N, total T, D]; not copied if there was one pass. Raises KeyError if nothing is recorded."""
        self._drop_removed_tokens()
        pieces = self._activations[key]
        if len(pieces) > 1:
            self._activations[key] = pieces = [torch.cat(pieces, dim=1)]
        return pieces[0]

    def codes(self, key: Hashable) -> Codes:
        """[N, total T]; not copied if there was one pass. Raises KeyError if nothing is recorded."""
        self._drop_removed_tokens()
        pieces = self._codes[key]
        if len(pieces) > 1:
            self._codes[key] = pieces = [concatenated(pieces)]
        return pieces[0]

    def _drop_removed_tokens(self) -> None:
        """Drop the records of tokens removed from the cache since the last pass, such as rejected drafts.

        If all tokens of the last pass were removed, the cache is being reused for another sequence, and the records of
        that pass are kept.
        """
        if self._input_cache is None or self._is_in_pass:
            return
        removed = self._cached_tokens - int(self._input_cache.get_seq_length())
        stop = self.first + max(self._lengths.values(), default=0)
        if 0 < removed < stop - self.past:
            self._cached_tokens -= removed
            self._truncate(stop - removed)

    def _truncate(self, position: int) -> None:
        """Drop the records of tokens from `position` on."""
        kept = position - self.first
        for key, length in self._lengths.items():
            if length <= kept:
                continue
            if key in self._codes:
                self._codes[key] = [concatenated(self._codes[key]).first_tokens(kept)]
            else:
                self._activations[key] = [torch.cat(self._activations[key], dim=1)[:, :kept]]
            self._lengths[key] = kept


def _no_cache() -> None:
    return None
