"""Conversion of rows to the screen's precision: low(x), the norm of x and the norm of the rounding error of each row.

Shape letters: B rows, D width; the rows of an encoder are its latents.
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

_ELEMENTS_PER_TASK = 1 << 17


@kernel
def lower_rows(rows: Any, low: Any, size: Any, lost: Any) -> None:
    """Round each float32 row [n, D] to bfloat16 bits; write its norm and the norm of the rounding error."""
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
    """Write the norm of each float32 row [n, D]."""
    for n in range(len(rows)):
        size[n] = np.sqrt(squared(rows[n]))


@kernel
def _centre_rows(rows: Any, centre: Any, centred: Any) -> None:
    for n in range(len(rows)):
        for d in range(len(centre)):
            centred[n, d] = rows[n, d] - centre[d]


def rows_per_task(width: int) -> int:
    """Number of rows of this width per task, enough to outweigh the overhead of a call."""
    return max(1, _ELEMENTS_PER_TASK // max(1, width))


def input_rows(threads: Threads, dtype: torch.dtype, x: Tensor, centre: Tensor | None) -> InputRows:
    """`Kernels.rows` with a screen of `dtype`."""
    if x.dtype != torch.float32:
        x, centre = (x if centre is None else x - centre).float(), None
    x = x.detach().contiguous()
    centred = x if centre is None else torch.empty_like(x)
    source, subtracted, result = array(x), None if centre is None else array(centre), array(centred)
    low, size, lost = _allocate(centred, dtype)
    step = rows_per_task(x.shape[1])

    def task(number: int) -> None:
        part = slice(number * step, (number + 1) * step)
        if subtracted is not None:
            _centre_rows(source[part], subtracted, result[part])
        _fill(result, low, size, lost, part)

    threads.run(task, -(-len(x) // step))
    return InputRows(centred, low, size, lost)


def encoder_screen(threads: Threads, dtype: torch.dtype, W_enc: Tensor) -> Screen:
    """`Kernels.screen` with a screen of `dtype`."""
    weights = W_enc.detach()
    low, size, lost = _allocate(weights, dtype)
    screen, rows, step = Screen(low, size, lost), array(weights), rows_per_task(weights.shape[1])
    threads.run(lambda number: refresh(screen, rows, slice(number * step, (number + 1) * step)), -(-len(rows) // step))
    return screen


def refresh(screen: Screen, weights: np.ndarray, part: slice) -> None:
    """Update a part of the screen from its encoder [F, D]."""
    _fill(weights, screen.low, screen.size, screen.lost, part)


def _allocate(full: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for low, size and lost; in float32 `low` is `full` itself and `lost` is 0."""
    low = full if dtype == torch.float32 else torch.empty(full.shape, dtype=dtype)
    size = torch.empty(len(full))
    return low, size, torch.zeros_like(size) if low is full else torch.empty_like(size)


def _fill(full: np.ndarray, low: Tensor, size: Tensor, lost: Tensor, part: slice) -> None:
    if low.dtype == torch.float32:
        measure_rows(full[part], array(size)[part])
    else:
        lower_rows(full[part], array(low)[part], array(size)[part], array(lost)[part])
