"""Selection of the coders to compare: those with the same wiring and sites, most informative pairs first."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CoderInfo:
    """Metadata of a coder, known before its weights are read."""

    name: str
    """Unique among all compared coders; a coder of another run has the suffix `@` and the name of that run."""
    folder: Path
    place: str
    """Its wiring and sites as text; only coders of the same place are compared."""
    architecture: str
    sparsity: float
    latents: int
    width: int
    """Dimension of a decoder vector."""
    xxh3: str
    """Checksum of its weights file."""
    pieces: tuple[str, ...] = ()
    """The sites whose decoder vectors are concatenated in its own; several only for a crosscoder."""
    in_residual: bool = False
    """Whether its decoder vectors are in the space of the residual stream, and can be compared with tokens."""

    @property
    def plain_name(self) -> str:
        """Its name within its own run."""
        return self.folder.name


Pair = tuple[CoderInfo, CoderInfo]


def places(coders: Sequence[CoderInfo]) -> dict[str, list[CoderInfo]]:
    """The coders by place, in the given order of places, narrowest first within each."""
    ordered = sorted(coders, key=lambda coder: (coder.latents, coder.name))
    return {place: [c for c in ordered if c.place == place] for place in dict.fromkeys(c.place for c in coders)}


def pairs_among(coders: Sequence[CoderInfo]) -> list[Pair]:
    """All pairs of coders of one place, narrower coder first."""
    return [pair for group in places(coders).values() for pair in itertools.combinations(group, 2)]


def pairs_between(coders: Sequence[CoderInfo], others: Sequence[CoderInfo]) -> list[Pair]:
    """All pairs of a coder and one of `others` of the same place."""
    return [(coder, other) for coder in coders for other in others if coder.place == other.place]


def matchings(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs to match, most informative first: the same name, then equal widths, then different architectures."""
    return _sorted(pairs, lambda a, b: (a.latents != b.latents, _width_ratio(a, b), a.architecture == b.architecture))


def splittings(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs (narrow, wide) of different widths, most informative first: those that differ in width only."""
    ordered = [(a, b) if a.latents < b.latents else (b, a) for a, b in pairs if a.latents != b.latents]
    return _sorted(
        ordered, lambda a, b: (a.architecture != b.architecture, a.sparsity != b.sparsity, _width_ratio(a, b))
    )


def _sorted(pairs: Sequence[Pair], key: Callable[[CoderInfo, CoderInfo], tuple[bool | float, ...]]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (pair[0].plain_name != pair[1].plain_name, *key(*pair), *_names(pair)))


def _names(pair: Pair) -> tuple[str, str]:
    return pair[0].name, pair[1].name


def _width_ratio(a: CoderInfo, b: CoderInfo) -> float:
    """The absolute log2 of the ratio of the widths."""
    return abs(math.log2(a.latents / b.latents))


def companions(seed: CoderInfo, others: Sequence[CoderInfo]) -> tuple[CoderInfo | None, CoderInfo | None]:
    """Two coders for a neighbourhood: one of about the seed coder's width, and the widest of those that are wider."""
    same_place = [coder for coder in others if coder.place == seed.place and coder != seed]
    wider = max((c for c in same_place if c.latents > seed.latents), key=lambda c: (c.latents, c.name), default=None)
    rest = [coder for coder in same_place if coder != wider]
    return min(
        rest, key=lambda c: (_width_ratio(c, seed), c.architecture == seed.architecture, c.name), default=None
    ), wider


def seed_coder(group: Sequence[CoderInfo], others: Sequence[CoderInfo]) -> CoderInfo:
    """The coder of a place's seed latent: the narrowest with another coder of equal width, or else the narrowest."""
    ordered = sorted(group, key=lambda coder: (coder.latents, coder.name))
    paired = [c for c in ordered if any(o.latents == c.latents and o.place == c.place and o != c for o in others)]
    return (paired or ordered)[0]
