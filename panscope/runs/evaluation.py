"""Measuring the coders of a run, on its held-out text or any other, with its own model or another.

An evaluation has a label, which is in the names of the files it writes: `eval.json`, `latents.parquet`,
`positions.parquet` beside each coder and `results.parquet` for the held-out text; for any other `eval-<label>.json` and
so on. One that was killed continues from the sums it saved last; with `share` several processes measure a part each,
and the last to end writes the results of all.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from panscope.coders.inference import backend_for
from panscope.coders.wiring import WiredCoder
from panscope.data.documents import DataConfig, LocalDocuments, open_documents
from panscope.data.identity import text_identity
from panscope.data.source import Part
from panscope.data.tokens import TokenStream
from panscope.evals.evaluate import Evaluation, TextProgress, batches_of, measure_site_means
from panscope.evals.spec import EvalShard, EvalSpec, one_subset
from panscope.events import Evaluated, Reporter
from panscope.lms.load import memory_bytes
from panscope.lms.model import LanguageModel
from panscope.planning.plan import SuiteConfig
from panscope.runs.eval_checkpoint import EvalCheckpoint, delete_checkpoints
from panscope.runs.eval_files import Results, write_all
from panscope.runs.eval_request import HELD_OUT_REQUEST, EvalRequest
from panscope.runs.finished_coder import FinishedCoder
from panscope.runs.identity import ModelChanges
from panscope.runs.run import Run
from panscope.storage.locks import locked
from panscope.types import Site, UserError

_MOST_TOGETHER = 8
"""Altered passes run as one, at most."""
_NAMED = 20
"""Parts that one line names."""


def evaluate_run(
    run: Run,
    suite: SuiteConfig,
    lm: LanguageModel,
    reporter: Reporter,
    request: EvalRequest = HELD_OUT_REQUEST,
) -> Results | None:
    """Measure every coder of a run and write the results; None where other processes have not ended their parts.

    `lm` is the run's model, or that of the request. Raises UserError where there is nothing to measure or a coder is
    not of this model.
    """
    if request.data is None:
        check_has_text(run)
    request = request.labelled(suite)
    accepted = () if request.is_of_other_model(suite) else _accepted_changes(run, suite, lm, request)
    coders = {coder.name: _loaded(coder, lm, request) for coder in run.coders()}
    job = EvalJob(run, suite, lm, reporter, request, accepted)
    folder = run.evaluations / request.label
    part = EvalCheckpoint.for_shard(folder, job.key, request.share)
    part.folder.mkdir(parents=True, exist_ok=True)
    with locked(part.folder):
        evaluation = _measured(job, coders, part)
    if request.share.of == 1:
        return _finish(job, coders, evaluation, folder)
    with locked(run.path, wait=True):
        return _finish(job, coders, evaluation, folder) if _add_others(job, coders, evaluation, folder) else None


def check_has_text(run: Run) -> None:
    """Raise UserError for an imported run, of which no text is known."""
    if run.is_imported:
        raise UserError(f"the run {str(run.path)!r} was imported and has no text of its own: give --text FILE")


class EvalJob:
    """One evaluation of one run: its text, and what identifies it."""

    def __init__(
        self,
        run: Run,
        suite: SuiteConfig,
        lm: LanguageModel,
        reporter: Reporter,
        request: EvalRequest,
        accepted_changes: Sequence[str] = (),
    ) -> None:
        self._accepted_changes = tuple(accepted_changes)
        self.run, self.lm, self.reporter, self.request = run, lm, reporter, request
        self._suite = suite
        data = suite.data if request.data is None else request.data
        if data.context is None:
            data = data.replace(context=min(suite.data.context or lm.context, lm.context))
        elif data.context > lm.context:
            raise UserError(
                f"context is {data.context}, but the model reads at most {lm.context} tokens: give --context "
                f"{lm.context} or less"
            )
        self._memory = memory_bytes(suite.model.replace(device=str(lm.device)))
        self._data = _in_small_batches(data, lm, self._memory)
        self._documents = open_documents(self._data)

    @property
    def context(self) -> int:
        """The longest sequence."""
        assert self._data.context is not None
        return self._data.context

    @property
    def tokens(self) -> int | None:
        """Content tokens to measure on at least; None for all of the text."""
        return self.request.tokens or (None if self._whole else self._suite.eval.tokens)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of other packages that are measured."""
        return tuple(dict.fromkeys((*self._suite.eval.metrics, *self.request.metrics)))

    def open_tokens(self) -> TokenStream:
        """The text from its start."""
        whole, seed = self._whole, self._suite.seed
        part: Part = "all" if whole else "held_out"
        return TokenStream(
            self._documents, self.lm.tokenizer, self._data, part=part, seed=seed, epochs=1, keep_rest=whole
        )

    def spec(self, coders: Mapping[str, WiredCoder]) -> EvalSpec:
        """Its definition."""
        asked, (subsets, subset_of) = self.request, self._subsets()
        return EvalSpec(
            tokens=self.tokens,
            subsets=subsets,
            subset_of=subset_of,
            splice="all" if asked.saebench else asked.splice,
            loss_mask="input" if asked.saebench else "target",
            probes=self._suite.eval.probes,
            metrics=self.metrics,
            saebench=asked.saebench,
            interventions_per_pass=self._interventions_per_pass(coders),
            share=asked.share,
        )

    def about(self) -> dict[str, Any]:
        """What eval.json says of it, under `evaluated_on`."""
        asked, data = self.request, self._data
        return {
            "text": list(data.text),
            "text_identity": list(self._text_identity),
            "part": "all" if self._whole else "held_out",
            "packing": data.packing,
            "context": data.context,
            "chat": None if data.chat is None else data.chat.model_dump(mode="json"),
            "sequences": data.sequences,
            "model": (asked.model or self._suite.model).path,
            "model_identity": self.lm.identity.summary(),
            "accepted_changes": list(self._accepted_changes),
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "label": asked.label,
            "splice": "all" if asked.saebench else asked.splice,
            "coder_dtype": asked.coder_dtype or "float32",
            "as_trained": asked.as_trained,
        }

    @cached_property
    def _text_identity(self) -> tuple[str, ...]:
        return text_identity(self._data)

    @cached_property
    def key(self) -> str:
        """A hash of all that the sums depend on: coders, text, model and what is asked."""
        depends = {
            "coders": {name: self.run.coder(name).weights for name in self.run.coder_names()},
            "column": self._data.column,
            "held_out": self._data.held_out,
            "seed": self._suite.seed,
            "about": self.about(),
            "tokens": self.tokens,
            "probes": self._suite.eval.probes,
            "saebench": self.request.saebench,
            "metrics": self.metrics,
            "parts": self.request.share.of,
        }
        return xxhash.xxh3_64_hexdigest(json.dumps(depends, sort_keys=True).encode())

    @property
    def _whole(self) -> bool:
        """Whether all of a text is measured, and not only what the run has kept from training."""
        return self.request.data is not None and self.request.data.held_out == 0

    def _subsets(self) -> tuple[tuple[str, ...], Callable[[int], int]]:
        """The names of the text's subsets, which are its files, and the subset of a document."""
        documents, names = self._documents, tuple(dict.fromkeys(self._data.text))
        if len(names) == 1 or not isinstance(documents, LocalDocuments):
            return ("",), one_subset
        of_file = [names.index(name) for name in self._data.text]
        return names, lambda document: of_file[documents.file_of(document)]

    def _interventions_per_pass(self, coders: Mapping[str, WiredCoder]) -> int:
        """How many altered passes make one: as many batches of logits and codes as fit into an eighth of the memory."""
        codes = 4 * self.context * max(one.coder.config.width for one in coders.values())
        one = (_logits_bytes(self.context, self.lm) + codes) * self._data.sequences
        return max(1, min(_MOST_TOGETHER, self._memory // 8 // one))


def _accepted_changes(run: Run, suite: SuiteConfig, lm: LanguageModel, request: EvalRequest) -> tuple[str, ...]:
    """In what the model differs from the one that the coders were trained on, now or when training was resumed.

    Raises UserError for a difference that was not accepted.
    """
    changes = ModelChanges(request.accept_changed_model)
    for coder in run.coders():
        identity = coder.identity
        if identity is not None:
            changes.accepted += tuple(change for change in identity.accepted_changes if change not in changes.accepted)
            changes.check(
                identity.model,
                lm.identity,
                refusal=f"coder {coder.name!r} was trained on another model than {suite.model.path!r} is now",
                advice="put the model back as it was, name this one as another model by --model, or add "
                "--accept-changed-model to measure on it as it is",
            )
    return changes.accepted


def _loaded(coder: FinishedCoder, lm: LanguageModel, request: EvalRequest) -> WiredCoder:
    """A coder on the model's device; raises UserError if it does not fit the model."""
    wired = coder.load_trained() if request.as_trained else coder.load()
    _check_widths(coder.name, wired, lm)
    wired.coder.to(lm.device)
    if request.coder_dtype is not None:
        wired.coder.to(getattr(torch, request.coder_dtype))
    return WiredCoder(wired.wiring, wired.coder, wired.normaliser, backend_for(wired.coder, "auto"))


def _check_widths(name: str, wired: WiredCoder, lm: LanguageModel) -> None:
    """Raise UserError unless the model's sites are as wide as the coder's rows."""
    wiring, config = wired.wiring, wired.coder.config
    for sites, width in ((wiring.reads, config.d_in), (wiring.predicts, config.d_out)):
        parts = wiring.site_width(width)
        for site in sites:
            if lm.width(site) != parts:
                raise UserError(
                    f"coder {name!r} takes rows of {parts} numbers at {site}, where this model has {lm.width(site)}: "
                    "give the model it was trained on, or one fine-tuned from that"
                )


def _measured(job: EvalJob, coders: Mapping[str, WiredCoder], sums: EvalCheckpoint) -> Evaluation:
    """The evaluation of this process's part of the text, continued from what was saved."""
    spec, saved = job.spec(coders), sums.load()
    means = _means(job, coders, sums.folder.parent)
    evaluation = Evaluation(job.lm, coders, means, context=job.context, spec=spec)
    done = TextProgress()
    if saved is not None:
        state, done, _ = saved
        evaluation.load_state_dict(state)
        job.reporter.say(f"continuing after what was measured before: {done.rows:,} tokens")
    last_saved, progress = time.monotonic(), done
    try:
        for batch, before in batches_of(job.open_tokens, spec.tokens):
            if before.batches < done.batches:
                continue
            if before.batches in spec.share:
                evaluation.measure(batch, before)
            progress = before.after(batch)
            job.reporter.progress("evaluating", progress.rows, spec.tokens, "tokens")
            if time.monotonic() - last_saved > job.request.save_seconds:
                sums.save(evaluation.state_dict(), progress, complete=False)
                last_saved = time.monotonic()
    finally:
        job.reporter.ended()
    if spec.share.of > 1:
        sums.save(evaluation.state_dict(), progress, complete=True)
    return evaluation


def _means(job: EvalJob, coders: Mapping[str, WiredCoder], folder: Path) -> dict[Site, Tensor]:
    """The mean of each predicted site: what another process or an earlier one has left, or found now."""
    saved = EvalCheckpoint(folder / "means", job.key)
    found = saved.load()
    if found is None:
        means = measure_site_means(job.lm, job.open_tokens, coders, job.tokens)
        with locked(job.run.evaluations, wait=True):
            found = saved.load()
            if found is None:
                saved.save({str(site): mean for site, mean in means.items()}, TextProgress(), complete=True)
                return means
    return {Site.parse(site): mean.to(job.lm.device) for site, mean in found[0].items()}


def _add_others(job: EvalJob, coders: Mapping[str, WiredCoder], evaluation: Evaluation, folder: Path) -> bool:
    """Add what all the other processes measured; whether all have ended and none has written the results yet."""
    share, key = job.request.share, job.key
    shares = [EvalShard(number, share.of) for number in range(share.of)]
    parts = {each: EvalCheckpoint.for_shard(folder, key, each) for each in shares}
    if not parts[share].is_complete():
        job.reporter.say("the results are written already, by the process that ended last")
        return False
    left = [str(each) for each, part in parts.items() if not part.is_complete()]
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        named = ", ".join(left[:_NAMED])
        job.reporter.say(f"part {share} is measured; the results come with the last of {named}{more}")
        return False
    for each, part in parts.items():
        if each != share and (saved := part.load()) is not None:
            other = Evaluation(job.lm, coders, evaluation.means, context=job.context, spec=job.spec(coders))
            other.load_state_dict(saved[0])
            evaluation.merge(other)
    return True


def _finish(job: EvalJob, coders: Mapping[str, WiredCoder], evaluation: Evaluation, folder: Path) -> Results:
    """Write the results and delete the sums."""
    results = evaluation.results()
    written = write_all(job.run, coders, results, about=job.about(), suffix=job.request.suffix)
    delete_checkpoints(folder)
    job.reporter.tell(Evaluated(job.request.label, written))
    return written


def check_precision(results: Mapping[str, Mapping[str, Any]], precision: float | None) -> None:
    """Raise UserError unless fvu and delta_loss of every coder are known to `precision`, half of a 95 % interval."""
    if precision is None:
        return
    for name, fields in results.items():
        for number in ("fvu", "delta_loss"):
            if number not in fields["intervals"]:
                raise UserError(f"the text has too few sequences for any interval of {number}: give more text")
            low, high = fields["intervals"][number]
            half = (high - low) / 2
            if not math.isfinite(half):
                raise UserError(
                    f"{number} of coder {name!r} is undefined on this text, so it is not known to +-{precision:g}: "
                    "give other text, or do not ask for a precision (the results are written)"
                )
            if half > precision:
                needed = math.ceil(fields["tokens"] * (half / precision) ** 2)
                raise UserError(
                    f"{number} of coder {name!r} is known to +-{half:.2g}, but eval.precision asks for {precision:g}: "
                    f"measure on about {needed:,} tokens, or ask for less (the results are written)"
                )


def _logits_bytes(context: int, lm: LanguageModel) -> int:
    """Of one sequence: logits, and log-probabilities and probabilities of two passes."""
    return 5 * 4 * context * lm.vocabulary


def _in_small_batches(data: DataConfig, lm: LanguageModel, memory: int) -> DataConfig:
    """`data` with so few sequences a batch that logits and probabilities take at most an eighth of the memory."""
    assert data.context is not None
    return data.replace(sequences=max(1, min(data.sequences, memory // 8 // _logits_bytes(data.context, lm))))
