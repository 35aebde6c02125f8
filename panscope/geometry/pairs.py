"""Which coders are worth comparing: those of one wiring and the same sites, the most telling pairs first."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CoderInfo:
    """What is known of a coder before its weights are read."""

    name: str
    """Unique among all that are compared: one of another run has `@` and that run's name at its end."""
    folder: Path
    place: str
    """Its wiring and sites: only coders of one place are compared."""
    architecture: str
    sparsity: float
    latents: int
    width: int
    """Of a decoder vector."""
    xxh3: str
    """Of its file of weights."""
    pieces: tuple[str, ...] = ()
    """The sites whose decoder vectors lie side by side in its own: several of a crosscoder only."""
    in_residual: bool = False
    """Whether its decoder vectors lie in the residual stream, and can be compared with tokens."""

    @property
    def plain_name(self) -> str:
        """Its name in its own run."""
        return self.folder.name


Pair = tuple[CoderInfo, CoderInfo]


def places(coders: Sequence[CoderInfo]) -> dict[str, list[CoderInfo]]:
    """The coders by place, in the order given; the narrowest first within a place."""
    ordered = sorted(coders, key=lambda coder: (coder.latents, coder.name))
    return {place: [c for c in ordered if c.place == place] for place in dict.fromkeys(c.place for c in coders)}


def pairs_among(coders: Sequence[CoderInfo]) -> list[Pair]:
    """Every two coders of one place, the narrower one first."""
    return [pair for group in places(coders).values() for pair in itertools.combinations(group, 2)]


def pairs_between(coders: Sequence[CoderInfo], others: Sequence[CoderInfo]) -> list[Pair]:
    """Every coder with each of `others` at its place."""
    return [(coder, other) for coder in coders for other in others if coder.place == other.place]


def matchings(pairs: Sequence[Pair]) -> list[Pair]:
    """The order in which matching is most telling: coders of one name, equal widths, different architectures first."""
    return _sorted(pairs, lambda a, b: (a.latents != b.latents, _stretch(a, b), a.architecture == b.architecture))


def splittings(pairs: Sequence[Pair]) -> list[Pair]:
    """(narrow, wide) of different widths, in the order in which splitting is most telling: only the width differs."""
    uneven = [(a, b) if a.latents < b.latents else (b, a) for a, b in pairs if a.latents != b.latents]
    return _sorted(uneven, lambda a, b: (a.architecture != b.architecture, a.sparsity != b.sparsity, _stretch(a, b)))


def _sorted(pairs: Sequence[Pair], key: Callable[[CoderInfo, CoderInfo], tuple[bool | float, ...]]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (pair[0].plain_name != pair[1].plain_name, *key(*pair), *_names(pair)))


def _names(pair: Pair) -> tuple[str, str]:
    return pair[0].name, pair[1].name


def _stretch(a: CoderInfo, b: CoderInfo) -> float:
    """How many doublings lie between the widths."""
    return abs(math.log2(a.latents / b.latents))


def companions(seed: CoderInfo, others: Sequence[CoderInfo]) -> tuple[CoderInfo | None, CoderInfo | None]:
    """For a neighbourhood: another coder, as wide as that of the seed if there is one, and the widest that is wider."""
    at_site = [coder for coder in others if coder.place == seed.place and coder != seed]
    wider = max((c for c in at_site if c.latents > seed.latents), key=lambda c: (c.latents, c.name), default=None)
    left = [coder for coder in at_site if coder != wider]
    return min(
        left, key=lambda c: (_stretch(c, seed), c.architecture == seed.architecture, c.name), default=None
    ), wider


def seed_coder(group: Sequence[CoderInfo], others: Sequence[CoderInfo]) -> CoderInfo:
    """Whose latent a place's neighbourhood begins with: the narrowest coder that another is as wide as, if any is."""
    ordered = sorted(group, key=lambda coder: (coder.latents, coder.name))
    alike = [c for c in ordered if any(o.latents == c.latents and o.place == c.place and o != c for o in others)]
    return (alike or ordered)[0]
