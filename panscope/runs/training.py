"""The training stage of a run: language model -> activations -> trainers -> finished coders on disk."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from panscope import coders
from panscope.activations.buffer import RowStream
from panscope.activations.live import LiveActivations
from panscope.coders import files
from panscope.coders.base import Coder
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import UNIT, WiredCoder
from panscope.cost.memory import CONVERSION_CODES, check_memory, estimate_memory, parts_of_step
from panscope.data.identity import text_identity
from panscope.events import Reporter, StepLogged
from panscope.lms.facts import facts_of
from panscope.lms.load import device_of, load, memory_bytes
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan
from panscope.runs.identity import ModelChanges, RunIdentity, check_same_text
from panscope.runs.kernel_choice import KernelChoice, choose_kernels
from panscope.runs.normalisers import normaliser_of
from panscope.runs.profile import profiling
from panscope.runs.row_sources import Source, open_source, training_tokens
from panscope.runs.run import Run
from panscope.runs.shutdown import StopRequest
from panscope.storage.json_lines import JsonLines
from panscope.training.checkpoint import Checkpoints
from panscope.training.coder_trainer import CoderTrainer, StepBackend
from panscope.training.loop import train
from panscope.transforms.fold_norm import fold_norm
from panscope.transforms.to_jumprelu import MeanL0Threshold, frozen, with_threshold
from panscope.transforms.unit_decoder import keeps_selection, unit_decoder
from panscope.types import NonFiniteError, UserError

CALIBRATION_ROWS = 32_768
"""Rows on which a TopK coder's JumpReLU threshold is found (Llama Scope's released code)."""


class TrainingRun:
    """One training of a suite: its plan, model and kernels, and everything that changes while it trains."""

    def __init__(self, run: Run, plan: Plan, reporter: Reporter, *, accept_changed_model: bool = False) -> None:
        """The language model is loaded; `initialise` or `restore` makes the trainers.

        `accept_changed_model`: use it also where it is not the one that the run or its rows are of.
        Raises UserError where the suite does not fit into this device's memory, before any weight is read.
        """
        self.run, self.plan, self.reporter = run, plan, reporter
        self.kernels = _kernels(plan)
        self.lm = load(plan.suite.model)
        self.trainers: list[CoderTrainer] = []
        self.step = 0
        self._changes = ModelChanges(accept_changed_model)
        self._log, self._checkpoints = JsonLines(run.train_log), Checkpoints(run.checkpoints)

    @cached_property
    def source(self) -> Source:
        """Where rows come from."""
        return open_source(self.plan, self.lm, self.reporter.say, self._changes)

    @property
    def identity(self) -> RunIdentity:
        """The language model and the text that it trains on."""
        return RunIdentity.of(self.lm, self.plan.suite.data, self._changes.accepted)

    def initialise(self) -> None:
        """Trainers at their first step, their normalisers measured on the first rows."""
        self.reporter.say("measuring the size of the activations")
        norms = self.source.norms()
        self.trainers = [self._trainer(coder, normaliser_of(coder, norms)) for coder in self.plan.coders]

    def restore(self) -> None:
        """Everything as it was at the newest checkpoint, or at the first step where none was written yet.

        Raises UserError for a checkpoint that is damaged or of another suite, model or text.
        """
        steps = self._checkpoints.steps()
        if not steps:
            self._log.truncate(0)
            return self.initialise()
        parts = self._checkpoints.load(steps[-1])
        self._check_identity(RunIdentity.read(parts["run"]["identity"], f"checkpoint of step {steps[-1]}"), steps[-1])
        for coder in self.plan.coders:
            if coder.name not in parts:
                raise UserError(
                    f"the checkpoint of step {steps[-1]} has no coder {coder.name!r}: suite.toml was changed since; "
                    "put it back as it was, or start a new run"
                )
            trainer = self._trainer(coder, UNIT)
            trainer.load_state_dict(parts[coder.name])
            self.trainers.append(trainer)
        self.source.rows.load_state_dict(parts["source"])
        self._log.roll_back(parts["run"])
        self.step = steps[-1]
        self.reporter.say(f"resuming from the checkpoint of step {self.step}")

    def _check_identity(self, saved: RunIdentity, step: int) -> None:
        """Raise UserError unless model and text are those of a checkpoint, or the model's change is accepted."""
        since, data = f"the checkpoint of step {step}", self.plan.suite.data
        check_same_text(
            saved.text, text_identity(data), since=since, advice="put it back as it was, or start a new run"
        )
        self._changes.accepted = saved.accepted_changes
        self._changes.check(
            saved.model,
            self.lm.identity,
            refusal=f"the language model {self.plan.suite.model.path!r} has changed since {since}",
            advice="put it back as it was, start a new run, or add --accept-changed-model to continue with it as it is",
        )

    def train(self, *, profile: bool = False) -> bool:
        """Train to the end; True when all steps are done, False when a signal asked to stop earlier (all is saved).

        With `profile` coders learn one after another, so that the parts of a step can be told apart.
        """
        plan, told = self.plan, self.reporter
        with StopRequest(lambda: told.say("stopping after this step; everything is saved first")) as stop:
            self.source.stop_when(lambda: bool(stop))
            told.progress("training", self.step, plan.steps, "steps")
            try:
                with profiling(profile, told.say) as profiled:
                    return train(
                        self.trainers,
                        self.source.rows,
                        _Observer(self, stop, profiled),
                        steps=range(self.step, plan.steps),
                        log_every=plan.log_every,
                        checkpoint_every=plan.checkpoint_every,
                        kernels=None if profile else self.kernels.sparse,
                    )
            finally:
                told.ended()

    def log(self, records: list[dict[str, Any]]) -> None:
        """Append to train.jsonl."""
        self._log.append(records)

    def save_checkpoint(self, step: int) -> None:
        """Save everything needed to continue bit for bit; raises NonFiniteError, and saves nothing, for a coder that
        has diverged."""
        for trainer in self.trainers:
            if not trainer.is_finite():
                raise NonFiniteError(
                    f"coder {trainer.name}: its weights are not finite after step {step}, and were not saved; "
                    "the checkpoint before is untouched: lower learning_rate and start again"
                )
        parts = {trainer.name: trainer.state_dict() for trainer in self.trainers}
        parts["source"] = self.source.rows.state_dict()
        parts["run"] = self._log.mark() | {"identity": self.identity.plain()}
        self._checkpoints.save(step, parts)

    def save_coders(self) -> None:
        """Fold, convert and write every coder: what is saved works on raw activations."""
        for trainer in self.trainers:
            trainer.drop_optimiser()
        folded = {trainer.name: _fold(trainer) for trainer in self.trainers}
        thresholds = self._thresholds(folded)
        for planned, trainer in zip(self.plan.coders, self.trainers, strict=True):
            coder = folded[planned.name]
            if planned.name in thresholds:
                coder = self._converted(planned.name, coder, thresholds[planned.name])
            wired = WiredCoder(planned.wiring, coder, trainer.normaliser.left_after_folding())
            folder = self.run.coder_folder(planned.name)
            files.save(folder, wired, trainer.finished(), self._provenance(planned, trainer))

    def _provenance(self, planned: PlannedCoder, trainer: CoderTrainer) -> dict[str, Any]:
        """What config.json says of where a coder comes from."""
        return {
            "name": planned.name,
            "normaliser": trainer.normaliser.model_dump(),
            "model": self.plan.suite.model.model_dump(exclude={"device"}),
            "identity": self.identity.plain(),
            "tokens": planned.steps * self.plan.batch,
            "schedule": planned.training.model_dump(mode="json"),
            "activations": self.source.about(),
        }

    def _converted(self, name: str, coder: Coder, found: MeanL0Threshold) -> Coder:
        """The coder as JumpReLU; one that has no such threshold stays TopK and the run says so, rather than lose it."""
        try:
            return with_threshold(coder, found.value())
        except UserError as error:
            self.reporter.warn(f"coder {name} is saved as TopK and not as JumpReLU: {error}")
            return coder

    @torch.no_grad()
    def _thresholds(self, folded: dict[str, Coder]) -> dict[str, MeanL0Threshold]:
        """JumpReLU thresholds of the TopK coders to convert, from the first rows of the training text."""
        plan = self.plan
        converting = [c for c in plan.coders if c.convert_to == "jumprelu"]
        if not converting:
            return {}
        found = {c.name: MeanL0Threshold(int(c.coder.sparsity), CALIBRATION_ROWS * c.wiring.stacks) for c in converting}
        normalisers = {trainer.name: trainer.normaliser for trainer in self.trainers}
        live = LiveActivations(self.lm, training_tokens(plan, self.lm), plan.sites())
        stream, left = RowStream(live), CALIBRATION_ROWS
        while left and (batch := stream.take(left)) is not None:
            left -= len(batch)
            for planned in converting:
                x, _ = planned.wiring.rows(batch)
                x, _ = normalisers[planned.name].left_after_folding().input(x.float())
                for rows in x.split(max(1, CONVERSION_CODES // planned.coder.width)):
                    found[planned.name].update(folded[planned.name].preactivations(rows))
        return found

    def _trainer(self, planned: PlannedCoder, scales: Normaliser) -> CoderTrainer:
        seed = self.plan.suite.seed if planned.seed is None else planned.seed
        digest = hashlib.sha256(f"{seed}/{planned.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        coder = coders.build(planned.coder).initialise(generator).to(self.lm.device)
        kernels = self.kernels.of(planned.name)
        return CoderTrainer(
            planned.name,
            coder,
            planned.wiring,
            scales,
            planned.training,
            steps=planned.steps,
            backend=StepBackend(kernels, parts_of_step(planned, self.plan, is_sparse=kernels is not None)),
        )


class _Observer:
    """Joins the training loop to a run: its log, checkpoints, listeners and signals."""

    def __init__(self, training: TrainingRun, stop: StopRequest, profiled: Callable[[], None]) -> None:
        self._training, self._stop, self._profiled = training, stop, profiled
        self._rate = ""

    def stepped(self, step: int) -> None:
        self._training.reporter.progress("training", step, self._training.plan.steps, "steps", self._rate)
        self._profiled()

    def logged(self, records: list[dict[str, Any]]) -> None:
        self._training.log(records)
        self._rate = f"{records[0]['rows_per_second']:,.0f} rows/s"
        self._training.reporter.tell(StepLogged(records))

    def checkpoint(self, step: int) -> None:
        self._training.save_checkpoint(step)

    def wants_stop(self) -> bool:
        return bool(self._stop)


def _kernels(plan: Plan) -> KernelChoice:
    """The kernels in force here; raises UserError where the suite does not fit into this device's memory."""
    model = plan.suite.model
    kernels = choose_kernels(plan, device_of(model))
    check_memory(plan, estimate_memory(plan, facts_of(model), kernels.of), memory_bytes(model))
    return kernels


def _fold(trainer: CoderTrainer) -> Coder:
    """Without its normaliser, BatchTopK as JumpReLU, and with a unit decoder unless that would choose other latents."""
    finished = trainer.finished()
    folded = fold_norm(frozen(finished) if isinstance(finished, BatchTopKCoder) else finished, trainer.normaliser)
    return unit_decoder(folded) if keeps_selection(folded) else folded
