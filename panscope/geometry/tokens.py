"""The tokens nearest to a latent's decoder vector: its cosines with the rows of the embedding and the unembedding.

From the Multi-Layer SAE. Meaningful only for coders of the residual stream, the space that both matrices share. A
crosscoder's vectors are split into those of its sites.

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
"""Tokens reported per latent and matrix."""


@dataclass(frozen=True)
class NearTokens:
    """The tokens nearest to every latent, at one site and in one matrix."""

    site: str
    """The first site, if one coder is for several layers."""
    matrix: str
    """embedding or unembedding."""
    found: Nearest
    """[F, K]."""


def nearest_tokens(
    dictionary: Dictionary, sites: Sequence[str], matrices: Mapping[str, Tensor], progress: Progress
) -> list[NearTokens]:
    """The nearest tokens of decoder vectors [F, S D], concatenated over `sites`, in `matrices` [V, D], by name.

    Raises UserError if the widths of vectors and matrices do not match.
    """
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
    """The columns of a table with one row per latent, site, matrix and rank, without missing neighbours."""
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
    """The distribution of every latent's largest cosine, by matrix, over all sites."""
    largest: dict[str, list[Tensor]] = {}
    for near in found:
        largest.setdefault(near.matrix, []).append(near.found.cosines[near.found.found, 0])
    return {matrix: spread(torch.cat(parts)) for matrix, parts in largest.items()}
