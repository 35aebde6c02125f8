"""One step of Adam on a matrix, row by row, with the gradient of each row formed and used up on the spot.

No gradient matrix is ever in memory. A row is read and written once, whatever its gradient: one without entries
decays as torch's Adam lets it decay. Rows are independent, so the threads' shares do not show in the result.

Shape letters: D width of the matrix, F rows of it.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from panscope.kernels.backend import AdamStep, Finish, Gradient
from panscope.kernels.cpu.arithmetic import squared
from panscope.kernels.cpu.arrays import Buffers, array
from panscope.kernels.cpu.compiled import inlined, kernel
from panscope.kernels.cpu.gradient import form, parts
from panscope.kernels.cpu.rows import measure_rows, refresh, rows_a_task
from panscope.kernels.cpu.threads import Threads

_TINY = np.float64(torch.finfo(torch.float32).tiny)


class Adam(NamedTuple):
    """The numbers of one step, float32."""

    scale: np.float32
    beta1: np.float32
    beta2: np.float32
    new1: np.float32
    """1 - beta1."""
    new2: np.float32
    """1 - beta2."""
    rate: np.float32
    """The learning rate over 1 - beta1^t."""
    correction: np.float32
    """1 / sqrt(1 - beta2^t)."""
    eps: np.float32


def _numbers(adam: AdamStep) -> Adam:
    rate = adam.learning_rate / (1 - adam.beta1**adam.step)
    correction = (1 - adam.beta2**adam.step) ** -0.5
    numbers = (adam.scale.item(), adam.beta1, adam.beta2, 1 - adam.beta1, 1 - adam.beta2, rate, correction, adam.eps)
    return Adam(*(np.float32(number) for number in numbers))


def update(  # noqa: PLR0913
    threads: Threads,
    buffers: Buffers,
    W: Tensor,
    m: Tensor,
    v: Tensor,
    gradient: Gradient,
    adam: AdamStep,
    finish: Finish,
) -> None:
    """`Kernels.update`."""
    if not adam.ok:
        return
    matrices = [each.detach().contiguous() for each in (W, m, v)]
    weights, first, second = (array(each) for each in matrices)
    sources, numbers, step = parts(gradient), _numbers(adam), rows_a_task(W.shape[1])

    def task(number: int) -> None:
        part = slice(number * step, min(len(weights), (number + 1) * step))
        room = buffers.array("gradient", (W.shape[1],), torch.float32)
        _step_rows(part.start, part.stop, weights, first, second, sources, finish.project, numbers, room)
        if finish.unit:
            _make_unit(weights[part])
        if finish.screen is not None:
            refresh(finish.screen, weights, part)
        if finish.norms is not None:
            measure_rows(weights[part], finish.norms.detach().numpy()[part])

    threads.run(task, -(-len(weights) // step))
    for given, used in zip((W, m, v), matrices, strict=True):
        if given.data_ptr() != used.data_ptr():
            given.detach().copy_(used)


def squared_norm(threads: Threads, buffers: Buffers, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
    """`Kernels.squared_norm`."""
    weights, sources, step = array(W), parts(gradient), rows_a_task(W.shape[1])
    squares = np.empty(len(weights))

    def task(number: int) -> None:
        room = buffers.array("gradient", (W.shape[1],), torch.float32)
        _square_rows(number * step, min(len(weights), (number + 1) * step), weights, sources, project, room, squares)

    threads.run(task, -(-len(weights) // step))
    return torch.tensor(squares.sum(), dtype=torch.float64)


@kernel
def _square_rows(first: Any, end: Any, weights: Any, parts: Any, project: Any, g: Any, squares: Any) -> None:
    """squares [F] float64 = the squared norm of the gradients of the rows `first` to `end` - 1."""
    for f in range(first, end):
        form(f, weights[f], parts, project, g)
        squares[f] = squared(g)


@kernel
def _step_rows(  # noqa: PLR0913
    first: Any, end: Any, weights: Any, m: Any, v: Any, parts: Any, project: Any, adam: Any, g: Any
) -> None:
    """Adam on the rows `first` to `end` - 1."""
    for f in range(first, end):
        form(f, weights[f], parts, project, g)
        _adam(weights[f], m[f], v[f], g, adam)


@inlined
def _adam(w: Any, m: Any, v: Any, g: Any, adam: Any) -> None:
    """Adam on one row [D], as torch computes it in float32."""
    for d in range(len(w)):
        slope = g[d] * adam.scale
        m[d] = m[d] * adam.beta1 + slope * adam.new1
        v[d] = v[d] * adam.beta2 + slope * slope * adam.new2
        w[d] -= adam.rate * m[d] / (np.sqrt(v[d]) * adam.correction + adam.eps)


@kernel
def _make_unit(rows: Any) -> None:
    """Bring each row [n, D] to norm 1, but for what is too small."""
    for n in range(len(rows)):
        factor = np.float32(1 / max(np.sqrt(squared(rows[n])), _TINY))
        for d in range(rows.shape[1]):
            rows[n, d] *= factor
