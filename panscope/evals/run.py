"""The evaluation: two looks at held-out text give every number of every coder's eval.json.

The first look finds the mean of each predicted site. The second reads every site in one clean pass a batch; each coder
then encodes and decodes its rows and the model runs once more with the reconstruction in place. Memory holds one
batch and the metrics' sums, whatever the length of the text.

Shape letters: B content tokens of a batch, P predicted tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor

from panscope.coders.wiring import WiredCoder
from panscope.config import Config
from panscope.evals.ablation import Ablations, not_finite, site_means
from panscope.evals.finite import require_finite
from panscope.evals.outcome import Outcome
from panscope.evals.passes import CleanPass, LanguageModel
from panscope.evals.tally import Tally
from panscope.types import Site, TokenBatch, UserError

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
) -> dict[str, dict[str, float | int | str]]:
    """Measure every coder on at least `tokens` content tokens (None: all of the text); the fields of eval.json a coder.

    Coders work on raw activations and sit on the model's device. `progress` is told the tokens measured so far after
    every batch. Raises UserError if the text has no content token or none to predict, NonFiniteError if the model or a
    coder gives NaN or infinity.
    """
    if not coders:
        return {}
    means = site_means(lm, _up_to(tokens, open_tokens()), {c.wiring.predicts: name for name, c in coders.items()})
    tallies = {name: Tally() for name in coders}
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
    tallies: Mapping[str, Tally],
    *,
    means: dict[Site, Tensor],
) -> None:
    """Every coder on one batch."""
    sites = sorted({site for coder in coders.values() for site in coder.wiring.sites()})
    clean = CleanPass(lm, batch, sites)
    ablations = Ablations(clean, means)
    for name, coder in coders.items():
        tallies[name].update(_outcome(name, coder, clean, ablations))


def _outcome(name: str, coder: WiredCoder, clean: CleanPass, ablations: Ablations) -> Outcome:
    """What one coder does to one batch; its reconstruction goes to the site it predicts."""
    reads, predicts = coder.wiring.reads, coder.wiring.predicts
    x, y = clean.rows[reads], clean.rows[predicts]
    require_finite(x, not_finite(reads, name))
    latents = coder.encode(x)
    y_hat = coder.decode(latents)
    require_finite(y_hat, f"coder {name!r} reconstructs {predicts} with NaN or infinity: its weights are not usable")
    spliced = clean.replaced(predicts, y_hat)
    zeroed, averaged = ablations.losses(predicts)
    for loss in (clean.ce, spliced.ce, spliced.kl, zeroed, averaged):
        require_finite(loss, f"the model's loss is NaN or infinite round coder {name!r} at {predicts}: use float32")
    return Outcome(y.double(), y_hat.double(), latents, clean.ce, spliced.ce, zeroed, averaged, spliced.kl)


def _checked(tally: Tally) -> dict[str, float | int | str]:
    result: dict[str, float | int | str] = {**tally.result()}
    if result["predicted_tokens"] == 0:
        raise UserError("the evaluation text has 0 tokens to predict, expected at least 1: give documents of 2 or more")
    return result
