"""Running figures of a coder in training: sums stay on the device and are read only when a line is logged.

Shape letters: B rows, E output width, F latents.
"""

import math
from typing import Any

import torch
from torch import Tensor

from panscope.training.accumulation import StepSums
from panscope.training.shared import TargetSums


class DeadClock:
    """For every latent, the rows that went by since it was last active; rows of several layers stacked count once."""

    def __init__(self, width: int, window: int, device: torch.device) -> None:
        self.window = window
        self.rows_since_active = torch.zeros(width, dtype=torch.int64, device=device)

    def update(self, firings: Tensor, rows: int) -> None:
        """Count `rows` more rows, on which each latent fired `firings` [F] times."""
        self.rows_since_active += rows
        self.rows_since_active.masked_fill_(firings > 0, 0)

    def dead(self) -> Tensor:
        """[F] bool: silent for at least the window."""
        return self.rows_since_active >= self.window

    def dead_fraction(self) -> float:
        """Share of latents silent for at least the window."""
        return self.dead().float().mean().item()

    def state_dict(self) -> dict[str, Tensor]:
        """The clock's state."""
        return {"rows_since_active": self.rows_since_active}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self.rows_since_active.copy_(state["rows_since_active"])


class TrainingMeter:
    """Loss, FVU and L0 over the rows since the last logged line; FVU against the mean of those rows, in float64."""

    _NAMES = ("rows", "batches", "loss", "error", "total", "l0")

    def __init__(self, d_out: int, device: torch.device) -> None:
        self.sums = torch.zeros(len(self._NAMES), dtype=torch.float64, device=device)
        self.sum_y = torch.zeros(d_out, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, targets: TargetSums, step: StepSums) -> None:
        """Add a batch: the sums of its targets and of what the coder made of it."""
        parts = (
            torch.tensor(float(step.rows)), torch.tensor(1.0), step.loss, step.error, targets.squares, step.active
        )  # fmt: skip
        self.sums += torch.stack([part.to(self.sums.device, torch.float64) for part in parts])
        self.sum_y += targets.total

    def read(self) -> dict[str, float]:
        """The figures since the last reading; the sums start again at 0. One transfer from the device."""
        rows, batches, loss, error, total, l0 = self.sums.tolist()
        centred = total - self.sum_y.square().sum().item() / rows if rows else math.nan
        self.sums.zero_()
        self.sum_y.zero_()
        if not rows:
            return dict.fromkeys(("loss", "fvu", "l0"), math.nan)
        return {"loss": loss / batches, "fvu": error / centred if centred > 0 else math.nan, "l0": l0 / rows}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"sums": self.sums, "sum_y": self.sum_y}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from sums."""
        self.sums.copy_(state["sums"])
        self.sum_y.copy_(state["sum_y"])
