"""The training stage of a run: language model -> activations -> trainees -> finished coders on disk."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from panscope import coders
from panscope.activations.buffer import RowStream
from panscope.activations.live import LiveActivations
from panscope.coders import files as store
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.normaliser import Normaliser
from panscope.coders.topk import TopKConfig
from panscope.coders.wiring import UNIT, WiredCoder
from panscope.lms.model import LanguageModel
from panscope.plan.coder import PlannedCoder
from panscope.plan.plan import Plan
from panscope.runs.kernel_choice import KernelChoice
from panscope.runs.normalisers import normaliser_of
from panscope.runs.profile import profiling
from panscope.runs.reporter import Reporter
from panscope.runs.row_sources import Source, open_source, training_tokens
from panscope.runs.run import RunFolder
from panscope.runs.shutdown import StopRequest
from panscope.storage.json_lines import JsonLines
from panscope.train.checkpoint import Checkpoints
from panscope.train.coder_trainer import CoderTrainer
from panscope.train.loop import train
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import MeanL0Threshold, frozen, with_threshold
from panscope.transforms.unit_decoder import keeps_selection, unit_decoder
from panscope.types import NonFiniteError, UserError

CALIBRATION_ROWS = 32_768
"""Rows on which a TopK coder's JumpReLU threshold is found (Llama Scope's released code)."""


@dataclass
class TrainingState:
    """Everything that changes while a suite trains."""

    trainers: list[CoderTrainer]
    source: Source
    step: int


def fresh(plan: Plan, lm: LanguageModel, kernels: KernelChoice, reporter: Reporter) -> TrainingState:
    """Trainers at their first step, their normalisers measured on the first rows."""
    source = open_source(plan, lm, reporter.say)
    reporter.say("measuring the size of the activations")
    norms = source.norms()
    trainers = [_trainer(coder, plan, lm, normaliser_of(coder, norms), kernels) for coder in plan.coders]
    return TrainingState(trainers, source, 0)


def restored(plan: Plan, lm: LanguageModel, run: RunFolder, kernels: KernelChoice, reporter: Reporter) -> TrainingState:
    """Everything as it was at the newest checkpoint, or fresh where none was written yet."""
    checkpoints, log = Checkpoints(run.checkpoints), JsonLines(run.train_log)
    if not checkpoints.steps():
        log.truncate(0)
        return fresh(plan, lm, kernels, reporter)
    step = checkpoints.steps()[-1]
    parts = checkpoints.load(step)
    trainers = [_trainer(coder, plan, lm, UNIT, kernels) for coder in plan.coders]
    for trainer in trainers:
        if trainer.name not in parts:
            raise UserError(
                f"the checkpoint of step {step} has no coder {trainer.name!r}: suite.toml was changed since; "
                "put it back as it was, or start a new run"
            )
        trainer.load_state_dict(parts[trainer.name])
    source = open_source(plan, lm, reporter.say)
    source.rows.load_state_dict(parts["source"])
    log.take_back(parts["run"])
    reporter.say(f"going on from the checkpoint of step {step}")
    return TrainingState(trainers, source, step)


def train_suite(
    plan: Plan,
    state: TrainingState,
    run: RunFolder,
    reporter: Reporter,
    stop: StopRequest,
    *,
    kernels: KernelChoice,
    profile: bool = False,
) -> bool:
    """Train to the end; True when all steps are done, False when `stop` asked to leave earlier (all is saved).

    With `profile` coders learn one after another, so that the parts of a step can be told apart.
    """
    reporter.training(state.step, plan.steps, plan.batch)
    try:
        with profiling(profile, reporter.say) as profiled:
            return train(
                state.trainers,
                state.source.rows,
                _Observer(state, run, reporter, stop, profiled),
                steps=range(state.step, plan.steps),
                log_every=plan.log_every,
                checkpoint_every=plan.checkpoint_every,
                kernels=None if profile else kernels.sparse,
            )
    finally:
        reporter.finished()


class _Observer:
    """Joins the loop to the run folder, the reporter and the signals."""

    def __init__(
        self, state: TrainingState, run: RunFolder, reporter: Reporter, stop: StopRequest, profiled: Callable[[], None]
    ) -> None:
        self._state = state
        self._profiled = profiled
        self._log = JsonLines(run.train_log)
        self._checkpoints = Checkpoints(run.checkpoints)
        self._reporter = reporter
        self._stop = stop

    def stepped(self, step: int) -> None:
        self._reporter.stepped(step)
        self._profiled()

    def logged(self, records: list[dict[str, Any]]) -> None:
        self._log.append(records)
        self._reporter.logged(records)

    def checkpoint(self, step: int) -> None:
        for trainer in self._state.trainers:
            if not trainer.is_finite():
                raise NonFiniteError(
                    f"coder {trainer.name}: its weights are not finite after step {step}, and were not saved; "
                    "the checkpoint before is untouched: lower learning_rate and start again"
                )
        parts = {trainer.name: trainer.state_dict() for trainer in self._state.trainers}
        parts["source"] = self._state.source.rows.state_dict()
        parts["run"] = self._log.mark()
        self._checkpoints.save(step, parts)

    def wants_stop(self) -> bool:
        return bool(self._stop)


def save_coders(plan: Plan, lm: LanguageModel, state: TrainingState, run: RunFolder, reporter: Reporter) -> None:
    """Fold, convert and write every coder: what is saved works on raw activations."""
    folded = {trainer.name: _fold(trainer) for trainer in state.trainers}
    thresholds = _thresholds(plan, lm, state, folded)
    for planned, trainer in zip(plan.coders, state.trainers, strict=True):
        coder = folded[planned.name]
        if planned.name in thresholds:
            coder = _converted(planned.name, coder, thresholds[planned.name], reporter)
        provenance = {
            "name": planned.name,
            "normaliser": trainer.normaliser.model_dump(),
            "model": plan.suite.model.model_dump(exclude={"device"}),
            "model_weights": lm.weights_hash(),
            "tokens": planned.steps * plan.batch,
            "schedule": planned.training.model_dump(mode="json"),
            "activations": state.source.about(),
        }
        wired = WiredCoder(planned.wiring, coder, trainer.normaliser.left_after_folding())
        store.save(run.coder(planned.name), wired, trainer.finished(), provenance)


def _fold(trainer: CoderTrainer) -> Coder:
    """Without its normaliser, BatchTopK as JumpReLU, and with a unit decoder unless that would choose other latents."""
    finished = trainer.finished()
    folded = fold_norm(frozen(finished) if isinstance(finished, BatchTopKCoder) else finished, trainer.normaliser)
    return unit_decoder(folded) if keeps_selection(folded) else folded


def _converted(name: str, coder: Coder, found: MeanL0Threshold, reporter: Reporter) -> Coder:
    """The coder as JumpReLU; one that has no such threshold stays TopK and the run says so, rather than lose it."""
    try:
        return with_threshold(coder, found.value())
    except UserError as error:
        reporter.say(f"coder {name} is saved as TopK and not as JumpReLU: {error}")
        return coder


@torch.no_grad()
def _thresholds(
    plan: Plan, lm: LanguageModel, state: TrainingState, folded: dict[str, Coder]
) -> dict[str, MeanL0Threshold]:
    """JumpReLU thresholds of the TopK coders to convert, from the first rows of the training text."""
    converting = [c for c in plan.coders if c.convert_to == "jumprelu" and isinstance(c.coder, TopKConfig)]
    if not converting:
        return {}
    rows = {c.name: CALIBRATION_ROWS * c.wiring.stacks for c in converting}
    found = {c.name: MeanL0Threshold(int(c.coder.sparsity), rows[c.name]) for c in converting}
    normalisers = {trainer.name: trainer.normaliser for trainer in state.trainers}
    line, left = RowStream(LiveActivations(lm, training_tokens(plan, lm), plan.sites())), CALIBRATION_ROWS
    while left and (batch := line.take(left)) is not None:
        left -= len(batch)
        for planned in converting:
            x, _ = planned.wiring.rows(batch)
            x, _ = normalisers[planned.name].left_after_folding().input(x.float())
            found[planned.name].update(folded[planned.name].preactivations(x))
    return found


def _trainer(
    planned: PlannedCoder, plan: Plan, lm: LanguageModel, scales: Normaliser, kernels: KernelChoice
) -> CoderTrainer:
    digest = hashlib.sha256(f"{plan.suite.seed}/{planned.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    coder = coders.build(planned.coder).initialise(generator).to(lm.device)
    return CoderTrainer(
        planned.name,
        coder,
        planned.wiring,
        scales,
        planned.training,
        steps=planned.steps,
        kernels=kernels.of(planned.name),
    )
