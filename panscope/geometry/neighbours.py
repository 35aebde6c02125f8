"""The neighbourhood of one latent: the latents with the nearest decoder vectors, within and across coders.

Llama Scope, section 4.6, Fig. 7: a seed latent, the 6 nearest in its own coder, the 6 nearest in another coder of the
same site, the 24 nearest in the widest coder of the site.

Shape letters: F latents, D width of a decoder vector, P points of a neighbourhood, K nearest.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panscope.geometry.baselines import johnson_lindenstrauss
from panscope.geometry.dictionary import Dictionary
from panscope.geometry.spread import largest
from panscope.kernels.cosines import Nearest, SearchLimits, directions, nearest
from panscope.types import UserError


@dataclass(frozen=True)
class Counts:
    """The number of neighbours to take from each coder."""

    own: int = 6
    """Latents of the coder itself."""
    other: int = 6
    """Latents of other coders of the same site."""
    wider: int = 24
    """Latents of a wider coder."""


@dataclass(frozen=True)
class Point:
    """One latent of a neighbourhood."""

    coder: str
    latent: int
    cosine: float
    """Cosine with the seed."""
    role: str
    """seed, own, other or wider."""


@dataclass(frozen=True)
class Neighbourhood:
    """The seed first, then its neighbours, nearest first within each role."""

    points: list[Point]
    rows: Tensor
    """[P, D] their decoder vectors."""
    among: int
    """The number of latents of the largest coder."""

    def numbers(self) -> dict[str, Any]:
        """The numbers for the summary: the least cosine of any two points and with the seed, and the random bound."""
        units = directions(self.rows)
        return {
            "points": len(self.points),
            "min_cosine": (units @ units.T).min().item(),
            "min_cosine_to_seed": min(point.cosine for point in self.points),
            "jl": johnson_lindenstrauss(self.among, self.rows.shape[1]),
            "roles": {role: sum(point.role == role for point in self.points) for role in _ROLES},
        }


_ROLES = ("seed", "own", "other", "wider")


def neighbourhood(
    own: Dictionary, latent: int, counts: Counts, *, other: Dictionary | None = None, wider: Dictionary | None = None
) -> Neighbourhood:
    """The neighbours of `latent` of `own`; raises UserError if it does not exist or has no direction."""
    if not 0 <= latent < len(own):
        raise UserError(
            f"--latent {latent} does not exist: coder {own.name!r} has {len(own)} latents, so give 0 to {len(own) - 1}"
        )
    seed = own.rows[latent : latent + 1]
    if not seed.any():
        raise UserError(f"--latent {latent} of coder {own.name!r} has a decoder vector of zeros: give another latent")
    points, rows = [Point(own.name, latent, 1.0, "seed")], [seed]
    not_itself = SearchLimits(excluded=torch.tensor([latent]))
    searches = (("own", own, counts.own, not_itself), ("other", other, counts.other, SearchLimits()))
    for role, dictionary, count, limits in (*searches, ("wider", wider, counts.wider, SearchLimits())):
        if dictionary is None or count == 0:
            continue
        found = nearest(seed, dictionary.rows, count, limits=limits)
        valid = found.indices[0] >= 0
        rows.append(dictionary.rows[found.indices[0][valid]])
        pairs = zip(found.indices[0][valid].tolist(), found.cosines[0][valid].tolist(), strict=True)
        points += [Point(dictionary.name, index, cosine, role) for index, cosine in pairs]
    among = max(len(dictionary) for dictionary in (own, other, wider) if dictionary is not None)
    return Neighbourhood(points, torch.cat(rows), among)


def densest(own: Nearest) -> int | None:
    """The latent with the nearest K-th neighbour in its own coder; None if no latent has a neighbour.

    This is the default seed: the middle of the tightest cluster. `own` are the nearest neighbours within the coder.
    """
    count = int((own.indices >= 0).sum(dim=1).max()) if len(own.indices) else 0
    if count == 0:
        return None
    farthest = own.cosines[:, count - 1].masked_fill(own.indices[:, count - 1] < 0, -2)
    return int((farthest == largest(farthest)).nonzero()[0])
