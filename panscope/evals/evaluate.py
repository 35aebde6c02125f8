"""The evaluation: two looks at held-out text give every number of every coder's eval.json.

The first look finds the mean of each predicted site. The second reads every site in one clean pass a batch; each coder
then encodes and decodes its rows, and the model continues from its site's block with the reconstruction in place.
Memory holds one batch and the metrics' sums, whatever the length of the text. The sums can be saved after any batch,
continued with, and merged with those of other processes that measured other batches of the same text.

Shape letters: B content tokens of a batch, M replaced ones, E width of a site, F latents, Q probed tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from panscope.coders.wiring import WiredCoder
from panscope.evals.accumulator import CoderShape, Result, SiteAccumulators, State, below, by_layer, flat
from panscope.evals.adjacent import AdjacentLayers
from panscope.evals.altered import Ablated, AlteredPasses
from panscope.evals.moments import Layout
from panscope.evals.outcome import Losses, Outcome, Span, TokenIndex, Uniformity
from panscope.evals.passes import CleanPass, LanguageModel
from panscope.evals.predictions import predicted_places
from panscope.evals.probes import Probes, probe, uniformity_of
from panscope.evals.site_means import not_finite, require_finite, site_means
from panscope.evals.spec import EvalSpec
from panscope.types import Latents, Site, TokenBatch, UserError

Tokens = Callable[[], Iterable[TokenBatch]]
"""Opens the held-out text from its start: the same batches at every call."""


@dataclass(frozen=True)
class TextProgress:
    """How much of the text has been gone through, by whichever process."""

    batches: int = 0
    rows: int = 0
    sequences: int = 0

    def after(self, batch: TokenBatch) -> "TextProgress":
        """The same with one more batch."""
        return TextProgress(self.batches + 1, self.rows + int(batch.content.sum()), self.sequences + len(batch.content))


@dataclass(frozen=True)
class BatchContext:
    """What all coders share of one batch."""

    before: TextProgress
    """The progress before it."""
    batch: TokenBatch
    span: Span
    clean: CleanPass
    probes: Probes | None


@dataclass(frozen=True)
class CoderOutput:
    """The output of one coder for one batch at one site."""

    coder: str
    site: Site
    latents: Latents
    """Of the B content rows."""
    y_hat: Tensor
    """[B, E]."""
    uniformity: Uniformity | None


class Evaluation:
    """The sums of every coder over the batches measured so far. Raises NonFiniteError on NaN or infinity."""

    def __init__(
        self,
        lm: LanguageModel,
        coders: Mapping[str, WiredCoder],
        means: dict[Site, Tensor],
        *,
        context: int,
        spec: EvalSpec,
    ) -> None:
        """`means` [E] float64 are of every predicted site; no sequence is longer than `context`."""
        self.means = means
        self._lm, self._coders, self._spec = lm, coders, spec
        layout = Layout.with_metrics(spec.metrics)
        shape = CoderShape(context, spec.subsets, spec.saebench, layout)
        self._accumulators = {
            name: SiteAccumulators(one.wiring, shape, one.coder.config.width) for name, one in coders.items()
        }
        stacks = {one.wiring.reads for one in coders.values() if by_layer(one.wiring)}
        self._adjacent = {sites: AdjacentLayers(sites) for sites in sorted(stacks)}

    @torch.no_grad()
    def measure(self, batch: TokenBatch, before: TextProgress) -> None:
        """Add one batch; `before` is the progress before it."""
        sites = sorted({site for coder in self._coders.values() for site in coder.wiring.sites()})
        altered = sorted({site for coder in self._coders.values() for site in coder.wiring.predicts})
        spec = self._spec
        clean = CleanPass(self._lm, batch, sites, altered, splice=spec.splice, loss_mask=spec.loss_mask)
        require_finite(clean.ce, "the model's own loss is NaN or infinite: use float32")
        predicted = predicted_places(batch, spec.loss_mask)
        probed = probe(self._lm, batch, predicted, altered, first=before.sequences, probes=spec.probes)
        look = BatchContext(before, batch, self._span(batch, before, predicted, clean), clean, probed)
        passes = AlteredPasses(clean, self.means, spec.interventions_per_pass)
        for name in self._in_order():
            self._measure_one(name, look, passes)
        passes.finish()
        for sites_of_stack, adjacent in self._adjacent.items():
            rows = {site: clean.rows[site][clean.is_content] for site in sites_of_stack}
            adjacent.update(rows, self.means)

    def results(self) -> dict[str, Result]:
        """The results of each coder; raises UserError where no token was predicted."""
        results = {name: accumulators.result() for name, accumulators in self._accumulators.items()}
        for name, coder in self._coders.items():
            fields = results[name].fields
            if fields["predicted_tokens"] == 0:
                raise UserError(
                    "the evaluation text has 0 tokens to predict, expected at least 1: give documents of 2 or more"
                )
            if by_layer(coder.wiring):
                adjacent = self._adjacent[coder.wiring.reads]
                fields["layers"] |= adjacent.numbers() | {"sites": adjacent.by_site()}
        return results

    def merge(self, other: Self) -> None:
        """Add the sums of `other`, which measured other batches of the same text."""
        assert all(torch.equal(mean, other.means[site]) for site, mean in self.means.items()), "of other text"
        for name, accumulators in self._accumulators.items():
            accumulators.merge(other._accumulators[name])
        for sites, adjacent in self._adjacent.items():
            adjacent.merge(other._adjacent[sites])

    def state_dict(self) -> State:
        """Every sum, and the means they are about."""
        accumulators = {f"coder {name}": one.state_dict() for name, one in self._accumulators.items()}
        stacks = {_stack(sites): adjacent.state_dict() for sites, adjacent in self._adjacent.items()}
        return flat(accumulators | stacks | {"means": {str(site): mean.cpu() for site, mean in self.means.items()}})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where `state_dict` was taken, with the same coders."""
        for name, one in self._accumulators.items():
            one.load_state_dict(below(state, f"coder {name}"))
        for sites, adjacent in self._adjacent.items():
            adjacent.load_state_dict(below(state, _stack(sites)))
        self.means = {site: state[f"means/{site}"].to(mean) for site, mean in self.means.items()}

    def _in_order(self) -> list[str]:
        """Coders of one site after each other, so that their passes can be run together."""
        return sorted(self._coders, key=lambda name: (self._coders[name].wiring.predicts, name))

    def _span(self, batch: TokenBatch, before: TextProgress, predicted: Tensor, clean: CleanPass) -> Span:
        documents = batch.document_ids.unique().tolist()
        subset = dict(zip(documents, self._spec.subsets_of(documents), strict=True))
        subsets = batch.document_ids.clone().apply_(lambda document: subset[document])

        def places(mask: Tensor, ahead: int = 0) -> TokenIndex:
            sequences, positions = mask.nonzero().T
            of = subsets[sequences, positions + ahead]
            return TokenIndex(*(x.to(clean.ce.device) for x in (sequences, positions, of)))

        ahead = int(self._spec.loss_mask == "target")
        return Span(before.rows, len(batch.content), places(batch.content), places(predicted, ahead))

    def _measure_one(self, name: str, look: BatchContext, passes: AlteredPasses) -> None:
        """One coder on one batch."""
        coder, clean = self._coders[name], look.clean
        wiring = coder.wiring
        for site in wiring.reads:
            require_finite(clean.rows[site], not_finite(site, name))
        x = wiring.gather(clean.rows)
        latents = coder.encode(x)
        pieces = wiring.split(coder.decode(latents, x), [clean.rows[site].shape[1] for site in wiring.predicts])
        codes = [_content(part, clean) for part in wiring.codes(latents)]
        self._accumulators[name].update_layers(codes)
        for site, code, y_hat in zip(wiring.predicts, codes, pieces, strict=True):
            require_finite(
                y_hat, f"coder {name!r} reconstructs {site} with NaN or infinity: its weights are not usable"
            )
            uniformity = self._uniformity(coder, site, code, look)
            made = CoderOutput(name, site, code, y_hat[clean.is_content], uniformity)
            passes.spliced(site, y_hat, partial(self._take, look, made))

    def _take(self, look: BatchContext, made: CoderOutput, spliced: Losses, ablated: Ablated) -> None:
        """What one coder did to one batch with its reconstruction at one site, all others left alone."""
        where = f"round coder {made.coder!r} at {made.site}"
        for losses in (spliced, ablated.zero, ablated.mean):
            for nats in (losses.ce, losses.kl):
                require_finite(nats, f"the model's loss is NaN or infinite {where}: use float32")
        y = look.clean.rows[made.site][look.clean.is_content].double()
        outcome = Outcome(
            span=look.span,
            y=y,
            y_hat=made.y_hat.double(),
            centre=self.means[made.site].to(y),
            latents=made.latents,
            ce_clean=look.clean.ce,
            spliced=spliced,
            zero_ablated=ablated.zero,
            mean_ablated=ablated.mean,
            uniformity=made.uniformity,
        )
        self._accumulators[made.coder].update(made.site, outcome)

    def _uniformity(self, coder: WiredCoder, site: Site, latents: Latents, look: BatchContext) -> Uniformity | None:
        """At the probed tokens; None where there is none, or no gradient at the site."""
        if look.probes is None or site not in look.probes.gradients:
            return None
        rows = look.probes.rows(look.batch.content)
        gradient = look.probes.gradients[site]
        places = TokenIndex(look.probes.sequences, look.probes.positions, look.span.rows.subsets.cpu()[rows])
        device = gradient.device
        on_device = TokenIndex(*(x.to(device) for x in (places.sequences, places.positions, places.subsets)))
        return uniformity_of(latents.select(rows.to(device)), _decoder(coder, site, look.clean), gradient, on_device)


def _decoder(coder: WiredCoder, site: Site, clean: CleanPass) -> Tensor:
    """[F, E] the columns of the decoder that predict `site`; it has all of them unless sites are concatenated."""
    W_dec, wiring = coder.coder.W_dec.detach(), coder.wiring
    if not wiring.kind.joins_columns:
        return W_dec
    widths = [clean.rows[one].shape[1] for one in wiring.predicts]
    return W_dec.split(widths, dim=1)[wiring.predicts.index(site)]


def _content(latents: Latents, clean: CleanPass) -> Latents:
    """The codes of the content rows."""
    return latents if bool(clean.is_content.all()) else latents.select(clean.is_content)


def _stack(sites: tuple[Site, ...]) -> str:
    return "stack " + " ".join(map(str, sites))


@torch.no_grad()
def measure_site_means(
    lm: LanguageModel, open_tokens: Tokens, coders: Mapping[str, WiredCoder], tokens: int | None
) -> dict[Site, Tensor]:
    """[E] float64 the mean of each predicted site; raises UserError if the text has no content token."""
    predicted = {site: name for name, coder in coders.items() for site in coder.wiring.predicts}
    return site_means(lm, (batch for batch, _ in batches_of(open_tokens, tokens)), predicted)


def evaluate(
    lm: LanguageModel,
    open_tokens: Tokens,
    coders: Mapping[str, WiredCoder],
    *,
    context: int,
    spec: EvalSpec,
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Result]:
    """Measure every coder in one go.

    Coders work on raw activations and sit on the model's device. `progress` is told the tokens gone through so far
    after every batch. Raises UserError if the text has no content token or none to predict, NonFiniteError if the model
    or a coder gives NaN or infinity.
    """
    if not coders:
        return {}
    means = measure_site_means(lm, open_tokens, coders, spec.tokens)
    evaluation = Evaluation(lm, coders, means, context=context, spec=spec)
    for batch, before in batches_of(open_tokens, spec.tokens):
        if before.batches in spec.share:
            evaluation.measure(batch, before)
        progress(before.after(batch).rows)
    return evaluation.results()


def batches_of(open_tokens: Tokens, tokens: int | None) -> Iterator[tuple[TokenBatch, TextProgress]]:
    """Batches with content, and where the text stood before each, until there are enough content tokens.

    Sequences of batches without content are counted all the same: a sequence has its number however batches are cut.
    """
    before = TextProgress()
    for batch in open_tokens():
        if not batch.content.any():
            before = replace(before, sequences=before.sequences + len(batch.content))
            continue
        yield batch, before
        before = before.after(batch)
        if tokens is not None and before.rows >= tokens:
            return
