"""A run in an experiment tracker: Weights & Biases (its offline mode too) and TensorBoard.

Both get what train.jsonl and eval.json have: the numbers of every coder at every logged step as `<coder>/<number>`,
those of an evaluation as `<label>/<coder>/<number>`, and the suite as the configuration. Neither is needed to read a
run; a run that is resumed continues its history there.
"""

import json
import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import xxhash

from panscope import events
from panscope.extras import optional
from panscope.types import UserError

_NOT_NUMBERS = ("step", "coder")


class WandbListener:
    """Sends a run to Weights & Biases; `wandb` itself is set up by its own environment variables.

    WANDB_MODE=offline writes below the run folder, for `wandb sync`; WANDB_PROJECT names the project ("panscope" where
    it is unset), WANDB_ENTITY the team. Raises UserError where wandb is not installed, or cannot start.
    """

    def __init__(self) -> None:
        self._wandb = optional("wandb", extra="track")
        self._run: Any = None
        self._warnings: list[str] = []

    def __call__(self, event: events.Event) -> None:
        """Send one event."""
        match event:
            case events.RunOpened(folder, config):
                self._run, self._warnings = self._opened(folder, config), []
            case events.StepLogged(records) if self._run is not None:
                self._run.log(_numbers(records), step=records[0]["step"])
            case events.Evaluated() if self._run is not None:
                self._run.summary.update(_results(event))
            case events.Message(text, True) if self._run is not None:
                self._warnings.append(text)
                self._run.summary.update({"warnings": self._warnings})
            case events.RunClosed() if self._run is not None:
                self._run.finish()
                self._run = None

    def _opened(self, folder: Path, config: Mapping[str, Any]) -> Any:
        try:
            return self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "panscope"),
                name=folder.resolve().name,
                id=_id(folder),
                resume="allow",
                dir=str(folder),
                config=dict(config),
            )
        except self._wandb.errors.Error as error:
            raise UserError(
                f"wandb cannot start: {str(error).rstrip('.')}; log in by `wandb login`, "
                "or set WANDB_MODE=offline in the environment"
            ) from error


class TensorBoardListener:
    """Writes a run for TensorBoard into `RUN/tensorboard`; raises UserError where tensorboard is not installed."""

    def __init__(self) -> None:
        optional("tensorboard", extra="track")
        self._module = optional("torch.utils.tensorboard", extra="track")
        self._writer: Any = None
        self._step = 0

    def __call__(self, event: events.Event) -> None:
        """Write one event."""
        match event:
            case events.RunOpened(folder, config, step):
                self._step = step or 0
                self._writer = self._module.SummaryWriter(
                    str(folder / "tensorboard"), purge_step=None if step is None else step + 1
                )
                self._writer.add_text("suite", f"```json\n{json.dumps(dict(config), indent=2)}\n```", self._step)
            case events.StepLogged(records) if self._writer is not None:
                self._step = records[0]["step"]
                for name, value in _numbers(records).items():
                    self._writer.add_scalar(name, value, self._step)
            case events.Evaluated() if self._writer is not None:
                for name, value in _results(event).items():
                    self._writer.add_scalar(name, value, self._step)
            case events.Message(text, True) if self._writer is not None:
                self._writer.add_text("warnings", text, self._step)
            case events.RunClosed() if self._writer is not None:
                self._writer.close()
                self._writer = None


TRACKERS = {"wandb": WandbListener, "tensorboard": TensorBoardListener}


def tracker(name: str) -> events.Listener:
    """A tracker by its name; raises UserError for one that is unknown or not installed."""
    if name not in TRACKERS:
        raise UserError(f"track is {name!r}: give one or several of {', '.join(TRACKERS)}")
    return TRACKERS[name]()


def _id(folder: Path) -> str:
    """The same for every session of a run folder, so that a resumed run is one run."""
    return xxhash.xxh3_64_hexdigest(str(folder.resolve()).encode() + (folder / "suite.toml").read_bytes())


def _numbers(records: Any) -> dict[str, float]:
    """The numbers of every coder at one step."""
    return {f"{one['coder']}/{name}": value for one in records for name, value in _plain(one).items()}


def _results(event: events.Evaluated) -> dict[str, float]:
    """The numbers of every coder in one evaluation."""
    found = event.results.items()
    return {f"{event.label}/{coder}/{name}": value for coder, own in found for name, value in _plain(own).items()}


def _plain(fields: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in fields.items()
        if isinstance(value, Real) and not isinstance(value, bool) and name not in _NOT_NUMBERS
    }
