"""Which tokens a latent's decoder vector points to: its cosine to the rows of the embedding and of the unembedding.

Multi-Layer SAE. It makes sense where a coder's rows lie in the residual stream, the space that both matrices share. A
crosscoder's vectors are taken apart into those of its sites.

Shape letters: F latents, D width of the residual stream, S sites of a crosscoder, V tokens, K nearest tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panscope.geometry.dictionary import Dictionary
from panscope.geometry.spread import spread
from panscope.kernels.cosines import Nearest, Progress, nearest
from panscope.types import UserError

NEAREST = 5
"""Tokens told for each latent and matrix."""


@dataclass(frozen=True)
class NearTokens:
    """The tokens nearest to every latent, at one site and in one matrix."""

    site: str
    """The first of several where one coder is for many layers."""
    matrix: str
    """embedding or unembedding."""
    found: Nearest
    """[F, K]."""


def nearest_tokens(
    dictionary: Dictionary, sites: Sequence[str], matrices: Mapping[str, Tensor], progress: Progress
) -> list[NearTokens]:
    """For decoder vectors [F, S D], those of `sites` side by side, and `matrices` [V, D], by name."""
    found = []
    for matrix, vectors in matrices.items():
        if len(sites) * vectors.shape[1] != dictionary.width:
            raise UserError(
                f"coder {dictionary.name!r} has decoder vectors of {dictionary.width} numbers for {len(sites)} sites, "
                f"but the model's {matrix} has rows of {vectors.shape[1]}: give the run its own model"
            )
        k, vectors = min(NEAREST, len(vectors)), vectors.to(dictionary.rows)
        pieces = zip(sites, dictionary.rows.split(vectors.shape[1], dim=1), strict=True)
        found += [NearTokens(site, matrix, nearest(piece, vectors, k, progress=progress)) for site, piece in pieces]
    return found


def token_columns(found: Sequence[NearTokens], texts: Sequence[str]) -> dict[str, Any]:
    """A row a latent, site, matrix and rank, without the places that nobody fills."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("latent", "site", "matrix", "rank", "token", "text", "cosine")
    }
    for near in found:
        latents, ranks = (near.found.indices >= 0).nonzero(as_tuple=True)
        tokens = near.found.indices[latents, ranks].tolist()
        columns["latent"] += latents.tolist()
        columns["site"] += [near.site] * len(tokens)
        columns["matrix"] += [near.matrix] * len(tokens)
        columns["rank"] += ranks.tolist()
        columns["token"] += tokens
        columns["text"] += [texts[token] for token in tokens]
        columns["cosine"] += near.found.cosines[latents, ranks].tolist()
    return columns


def token_numbers(found: Sequence[NearTokens]) -> dict[str, Any]:
    """The spread of every latent's largest cosine, by matrix; of all sites together."""
    largest: dict[str, list[Tensor]] = {}
    for near in found:
        largest.setdefault(near.matrix, []).append(near.found.cosines[near.found.found, 0])
    return {matrix: spread(torch.cat(parts)) for matrix, parts in largest.items()}
