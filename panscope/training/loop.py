"""The training loop: one batch of activations, many coders, until the tokens are used up.

It knows nothing of language models, files or terminals: batches come from an iterator, and what should happen beside
learning (log lines, checkpoints, a progress bar, a request to stop) comes in as an `Observer`.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field
from torch.profiler import record_function

from panscope.config import Config
from panscope.kernels.backend import Kernels
from panscope.training.coder_trainer import CoderTrainer
from panscope.training.shared import SharedBatch
from panscope.types import ActivationBatch, StoppedWaiting


class LoopConfig(Config):
    """The [train] table of a suite: what all its coders share."""

    batch: int | None = Field(default=None, gt=0)
    """Rows a step; left out, the plan chooses (at most 4,096, and at least 1,000 steps where the tokens allow)."""
    log_every: int | None = Field(default=None, gt=0)
    """Steps between two lines of train.jsonl; left out, a fiftieth of the run."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Steps between two checkpoints; left out, a fifth of the run, at most 5,000."""
    step_gib: float | None = Field(default=None, gt=0)
    """GiB that computing one coder's step may take, beside its weights and the rows; a coder that needs more processes
    its rows in parts, one after another, with the same result to rounding. Left out, a quarter of what the language
    model leaves of the device's memory."""
    kernels: Literal["auto", "sparse", "reference"] = "auto"
    """What computes a step: "reference" is every latent of every row, by autograd; "sparse" touches active latents only
    and fails where this machine cannot; "auto" is sparse for each coder it pays for, where this machine can."""


class Observer(Protocol):
    """What happens beside the training steps."""

    def stepped(self, step: int) -> None:
        """`step` steps are done."""
        ...

    def logged(self, records: list[dict[str, Any]]) -> None:
        """The figures of every coder since the last time."""
        ...

    def checkpoint(self, step: int) -> None:
        """Now is the time to save everything."""
        ...

    def wants_stop(self) -> bool:
        """Whether to save and leave after this step."""
        ...


def train(
    trainers: Sequence[CoderTrainer],
    batches: Iterator[ActivationBatch],
    observer: Observer,
    *,
    steps: range,
    log_every: int,
    checkpoint_every: int,
    kernels: Kernels | None = None,
) -> bool:
    """Do `steps`; True when all are done, False when the observer asked to stop earlier, also while waiting for rows.

    A trainer with fewer steps of its own is left alone once it has done them. With `kernels`, trainers that use sparse
    kernels learn side by side where these gain by it.
    """
    clock, rows, logged = time.monotonic(), 0, steps.start - steps.start % log_every
    for step in steps:
        with record_function("panscope::activations"):
            try:
                batch = next(batches)
            except StoppedWaiting:
                observer.checkpoint(step)
                return False
        learn(trainers, SharedBatch(batch), step, kernels)

        rows += len(batch)
        done = step + 1
        stop = observer.wants_stop() and done < steps.stop
        if done % log_every == 0 or done == steps.stop:
            now = time.monotonic()
            rate = {"rows_per_second": rows / (now - clock)}
            learned = [trainer for trainer in trainers if trainer.steps > logged]
            observer.logged([_line(trainer, min(done, trainer.steps), len(batch)) | rate for trainer in learned])
            clock, rows, logged = now, 0, done
        if stop or done % checkpoint_every == 0 or done == steps.stop:
            observer.checkpoint(done)
        observer.stepped(done)
        if stop:
            return False
    return True


def learn(trainers: Sequence[CoderTrainer], batch: SharedBatch, step: int, kernels: Kernels | None) -> None:
    """One step of every trainer that has not done all of its own."""
    learning = [trainer for trainer in trainers if step < trainer.steps]
    alone = [trainer for trainer in learning if kernels is None or not trainer.is_sparse]
    together = [trainer for trainer in learning if trainer not in alone]
    for trainer in alone:
        trainer.learn(batch, step)
    if kernels is not None and together:
        kernels.parallel_for(lambda number: together[number].learn(batch, step), len(together))


def _line(trainer: CoderTrainer, step: int, batch: int) -> dict[str, Any]:
    """What is logged of one trainer after its `step` steps of `batch` rows."""
    return {"step": step, "rows": step * batch} | trainer.read(step)
