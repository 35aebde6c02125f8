"""The evaluation: two looks at held-out text give every number of every coder's eval.json.

The first look finds the mean of each predicted site. The second reads every site in one clean pass a batch; each coder
then encodes and decodes its rows and the model runs once more with the reconstruction in place. Memory holds one
batch and the metrics' sums, whatever the length of the text.

Shape letters: B content tokens of a batch, P predicted tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from panscope.coders.wiring import WiredCoder
from panscope.config import Config
from panscope.evals.ablation import Ablations, not_finite, site_means
from panscope.evals.finite import require_finite
from panscope.evals.outcome import Outcome
from panscope.evals.passes import CleanPass, LanguageModel
from panscope.evals.tally import SiteTallies
from panscope.types import Latents, Site, TokenBatch, UserError

Tokens = Callable[[], Iterable[TokenBatch]]
"""Opens the held-out text from its start: the same batches at every call."""


class EvalConfig(Config):
    """The [eval] table of a suite file."""

    tokens: int = Field(default=100_000, gt=0)
    """Content tokens to evaluate on: it stops after the batch that reaches them, or at the end of the text."""


@torch.no_grad()
def evaluate(
    lm: LanguageModel,
    open_tokens: Tokens,
    coders: Mapping[str, WiredCoder],
    *,
    tokens: int | None,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, dict[str, Any]]:
    """Measure every coder on at least `tokens` content tokens (None: all of the text); the fields of eval.json a coder.

    Coders work on raw activations and sit on the model's device. `progress` is told the tokens measured so far after
    every batch. Raises UserError if the text has no content token or none to predict, NonFiniteError if the model or a
    coder gives NaN or infinity.
    """
    if not coders:
        return {}
    predicted = {site: name for name, coder in coders.items() for site in coder.wiring.predicts}
    means = site_means(lm, _up_to(tokens, open_tokens()), predicted)
    tallies = {name: SiteTallies(coder.wiring) for name, coder in coders.items()}
    measured = 0
    for batch in _up_to(tokens, open_tokens()):
        _measure(lm, batch, coders, tallies, means=means)
        measured += int(batch.content.sum())
        progress(measured)
    return {name: _checked(tally) for name, tally in tallies.items()}


def _up_to(tokens: int | None, batches: Iterable[TokenBatch]) -> Iterator[TokenBatch]:
    """Batches with content, until there are enough content tokens."""
    seen = 0
    for batch in batches:
        content = int(batch.content.sum())
        if content == 0:
            continue
        yield batch
        seen += content
        if tokens is not None and seen >= tokens:
            return


def _measure(
    lm: LanguageModel,
    batch: TokenBatch,
    coders: Mapping[str, WiredCoder],
    tallies: Mapping[str, SiteTallies],
    *,
    means: dict[Site, Tensor],
) -> None:
    """Every coder on one batch."""
    sites = sorted({site for coder in coders.values() for site in coder.wiring.sites()})
    altered = {site for coder in coders.values() for site in coder.wiring.predicts}
    clean = CleanPass(lm, batch, sites, altered)
    ablations = Ablations(clean, means)
    for name, coder in coders.items():
        for site, latents, y_hat in _reconstructions(name, coder, clean):
            tallies[name].update(site, _outcome(name, site, latents, y_hat, clean=clean, ablations=ablations))


def _reconstructions(name: str, coder: WiredCoder, clean: CleanPass) -> Iterator[tuple[Site, Latents, Tensor]]:
    """For each site that a coder predicts: the codes behind its rows, and their reconstruction [B, E]."""
    wiring = coder.wiring
    for site in wiring.reads:
        require_finite(clean.rows[site], not_finite(site, name))
    x = wiring.gather(clean.rows)
    latents = coder.encode(x)
    pieces = wiring.split(coder.decode(latents, x), [clean.rows[site].shape[1] for site in wiring.predicts])
    yield from zip(wiring.predicts, wiring.codes(latents), pieces, strict=True)


def _outcome(
    name: str, site: Site, latents: Latents, y_hat: Tensor, *, clean: CleanPass, ablations: Ablations
) -> Outcome:
    """What one coder does to one batch with its reconstruction at one site, all others left alone."""
    require_finite(y_hat, f"coder {name!r} reconstructs {site} with NaN or infinity: its weights are not usable")
    spliced = clean.replaced(site, y_hat)
    zeroed, averaged = ablations.losses(site)
    for loss in (clean.ce, spliced.ce, spliced.kl, zeroed, averaged):
        require_finite(loss, f"the model's loss is NaN or infinite round coder {name!r} at {site}: use float32")
    y = clean.rows[site]
    return Outcome(y.double(), y_hat.double(), latents, clean.ce, spliced.ce, zeroed, averaged, spliced.kl)


def _checked(tally: SiteTallies) -> dict[str, Any]:
    result = tally.result()
    if result["predicted_tokens"] == 0:
        raise UserError("the evaluation text has 0 tokens to predict, expected at least 1: give documents of 2 or more")
    return result
