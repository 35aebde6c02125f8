"""The first pass over the text: the mean of each site that a coder predicts, and the check that numbers are numbers.

Shape letters: D width of a site.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from panscope.evals.passes import LanguageModel, content_rows
from panscope.types import NonFiniteError, Site, TokenBatch, UserError


def site_means(lm: LanguageModel, batches: Iterable[TokenBatch], sites: dict[Site, str]) -> dict[Site, Tensor]:
    """[D] float64 a site: the mean of its rows over all content tokens, summed in float64.

    `sites` has the name of a coder at each site, for the message. Raises NonFiniteError on NaN or infinity, UserError
    where there is no content token.
    """
    sums: dict[Site, Tensor] = {}
    rows = 0
    for batch in batches:
        for site, y in content_rows(lm, batch, list(sites)).items():
            require_finite(y, not_finite(site, sites[site]))
            total = y.sum(dim=0, dtype=torch.float64)
            sums[site] = sums[site] + total if site in sums else total
        rows += int(batch.content.sum())
    if rows == 0:
        raise UserError("the evaluation text has 0 content tokens, expected at least 1: give text that is not empty")
    return {site: total / rows for site, total in sums.items()}


def not_finite(site: Site, coder: str) -> str:
    """The sentence for activations that are not numbers."""
    return (
        f"the language model's activations at {site}, needed by coder {coder!r}, hold NaN or infinity: "
        "check the model's weights, or load it in a wider dtype such as float32"
    )


def require_finite(values: Tensor, sentence: str) -> None:
    """Raise NonFiniteError with `sentence` if `values` hold NaN or infinity."""
    if not values.isfinite().all():
        raise NonFiniteError(sentence)
