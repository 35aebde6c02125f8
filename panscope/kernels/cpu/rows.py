"""Rows and the precision that screens: low(x), the norm of x and that of what was lost, row by row.

Shape letters: B rows, D width; for an encoder the rows are its latents.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from panscope.kernels.backend import InputRows, Screen
from panscope.kernels.cpu.arithmetic import narrow, squared, widen
from panscope.kernels.cpu.arrays import array
from panscope.kernels.cpu.compiled import kernel
from panscope.kernels.cpu.threads import Threads

_NUMBERS_A_TASK = 1 << 17


@kernel
def lower_rows(rows: Any, low: Any, size: Any, lost: Any) -> None:
    """Of each float32 row [n, D]: its nearest bfloat16 bits, its norm and the norm of the difference."""
    for n in range(len(rows)):
        row, bits = rows[n], low[n]
        whole, missing = 0.0, 0.0
        for d in range(len(row)):
            bits[d] = narrow(row[d])
            whole += np.float64(row[d]) * np.float64(row[d])
            gap = np.float64(row[d]) - np.float64(widen(bits[d]))
            missing += gap * gap
        size[n], lost[n] = np.sqrt(whole), np.sqrt(missing)


@kernel
def measure_rows(rows: Any, size: Any) -> None:
    """The norm of each float32 row [n, D]."""
    for n in range(len(rows)):
        size[n] = np.sqrt(squared(rows[n]))


@kernel
def _centre_rows(rows: Any, centre: Any, centred: Any) -> None:
    for n in range(len(rows)):
        for d in range(len(centre)):
            centred[n, d] = rows[n, d] - centre[d]


def rows_a_task(width: int) -> int:
    """How many rows of this width make a task worth the call."""
    return max(1, _NUMBERS_A_TASK // max(1, width))


def input_rows(threads: Threads, dtype: torch.dtype, x: Tensor, centre: Tensor | None) -> InputRows:
    """`Kernels.rows` with a screen of `dtype`."""
    if x.dtype != torch.float32:
        x, centre = (x if centre is None else x - centre).float(), None
    x = x.detach().contiguous()
    centred = x if centre is None else torch.empty_like(x)
    given, middle, result = array(x), None if centre is None else array(centre), array(centred)
    low, size, lost = _room(centred, dtype)
    step = rows_a_task(x.shape[1])

    def task(number: int) -> None:
        part = slice(number * step, (number + 1) * step)
        if middle is not None:
            _centre_rows(given[part], middle, result[part])
        _fill(result, low, size, lost, part)

    threads.run(task, -(-len(x) // step))
    return InputRows(centred, low, size, lost)


def encoder_screen(threads: Threads, dtype: torch.dtype, W_enc: Tensor) -> Screen:
    """`Kernels.screen` with a screen of `dtype`."""
    weights = W_enc.detach()
    low, size, lost = _room(weights, dtype)
    screen, rows, step = Screen(low, size, lost), array(weights), rows_a_task(weights.shape[1])
    threads.run(lambda number: refresh(screen, rows, slice(number * step, (number + 1) * step)), -(-len(rows) // step))
    return screen


def refresh(screen: Screen, weights: np.ndarray, part: slice) -> None:
    """Make a part of the screen true to its encoder [F, D]."""
    _fill(weights, screen.low, screen.size, screen.lost, part)


def _room(full: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Where low, size and lost go. In float32 nothing is lost."""
    low = full if dtype == torch.float32 else torch.empty(full.shape, dtype=dtype)
    size = torch.empty(len(full))
    return low, size, torch.zeros_like(size) if low is full else torch.empty_like(size)


def _fill(full: np.ndarray, low: Tensor, size: Tensor, lost: Tensor, part: slice) -> None:
    if low.dtype == torch.float32:
        measure_rows(full[part], array(size)[part])
    else:
        lower_rows(full[part], array(low)[part], array(size)[part], array(lost)[part])
