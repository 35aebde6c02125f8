"""Altered passes, a few together: the same site with zeros, with its mean, with one coder's rows after another.

They begin at the same block of the same batch, so that several make one pass over as many copies of it. A site's zeros
and mean are run once a batch, however many coders predict that site.

Shape letters: D width of a site, M replaced tokens of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from panscope.evals.outcome import Losses
from panscope.evals.passes import CleanPass, Replacement
from panscope.types import Site


@dataclass(frozen=True)
class Ablated:
    """What a site is worth to the model."""

    zero: Losses
    """With 0 at its tokens."""
    mean: Losses
    """With its mean at its tokens."""


class AlteredPasses:
    """The altered passes of one batch; each waits until there are enough of its site, or until it is asked for."""

    def __init__(self, clean: CleanPass, means: dict[Site, Tensor], interventions_per_pass: int) -> None:
        """`together` is how many make one pass at most."""
        self._clean, self._means, self._interventions_per_pass = clean, means, interventions_per_pass
        self._ablations: dict[Site, list[Losses]] = {}
        self._site: Site | None = None
        self._waiting: list[tuple[Replacement, Callable[[Losses], None]]] = []

    def spliced(self, site: Site, rows: Tensor, then: Callable[[Losses, Ablated], None]) -> None:
        """Put rows [M, D] at `site`; `then` is told, sooner or later, of that pass and of the site's ablations."""
        if site not in self._ablations:
            found = self._ablations[site] = []
            mean = self._means[site].expand_as(rows)  # rounded to the model's dtype, whatever the coder's
            self._wait(site, Replacement(torch.zeros_like(rows)), found.append)
            self._wait(site, Replacement(mean, divergences=False), found.append)
        self._wait(site, Replacement(rows), lambda losses: then(losses, Ablated(*self._ablations[site])))

    def finish(self) -> None:
        """Run what waits."""
        if self._site is None or not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        found = self._clean.altered(self._site, [replacement for replacement, _ in waiting])
        for losses, (_, then) in zip(found, waiting, strict=True):
            then(losses)

    def _wait(self, site: Site, replacement: Replacement, then: Callable[[Losses], None]) -> None:
        if site != self._site:
            self.finish()
            self._site = site
        self._waiting.append((replacement, then))
        if len(self._waiting) >= self._interventions_per_pass:
            self.finish()
