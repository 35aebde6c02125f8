"""One Adam step on a matrix, row by row, with the gradient of each row computed when it is needed.

No gradient matrix is ever in memory. Every row is read and written once: those without entries are updated as well, as
in torch's Adam. Rows are independent, so the result does not depend on how they are divided among threads.

Shape letters: D width of the matrix, F rows of it.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from panscope.kernels.backend import AdamStep, Finish, Gradient
from panscope.kernels.cpu.arithmetic import ONE, add, squared
from panscope.kernels.cpu.arrays import Buffers, array
from panscope.kernels.cpu.compiled import inlined, kernel
from panscope.kernels.cpu.gradient import form, parts
from panscope.kernels.cpu.rows import measure_rows, refresh, rows_per_task
from panscope.kernels.cpu.threads import Threads

_TINY = np.float64(torch.finfo(torch.float32).tiny)


class Adam(NamedTuple):
    """The constants of one step, float32."""

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


def _constants(adam: AdamStep) -> Adam:
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
    gradient_parts, constants, step = parts(gradient), _constants(adam), rows_per_task(W.shape[1])

    def task(number: int) -> None:
        part = slice(number * step, min(len(weights), (number + 1) * step))
        g = buffers.array("gradient", (W.shape[1],), torch.float32)
        _step_rows(part.start, part.stop, weights, first, second, gradient_parts, finish.project, constants, g)
        if finish.unit:
            _make_unit(weights[part])
        if finish.screen is not None:
            refresh(finish.screen, weights, part)
        if finish.norms is not None:
            measure_rows(weights[part], finish.norms.detach().numpy()[part])

    threads.run(task, -(-len(weights) // step))
    for original, contiguous in zip((W, m, v), matrices, strict=True):
        if original.data_ptr() != contiguous.data_ptr():
            original.detach().copy_(contiguous)


def squared_norm(threads: Threads, buffers: Buffers, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
    """`Kernels.squared_norm`."""
    weights, gradient_parts, step = array(W), parts(gradient), rows_per_task(W.shape[1])
    squares = np.empty(len(weights))

    def task(number: int) -> None:
        first, end = number * step, min(len(weights), (number + 1) * step)
        g = buffers.array("gradient", (W.shape[1],), torch.float32)
        _square_rows(first, end, weights, gradient_parts, project, g, squares)

    threads.run(task, -(-len(weights) // step))
    return torch.tensor(squares.sum(), dtype=torch.float64)


def add_gradient(threads: Threads, buffers: Buffers, W: Tensor, gradient: Gradient, total: Tensor) -> None:
    """`Kernels.add_gradient`."""
    weights, gradient_parts, step, sums = array(W), parts(gradient), rows_per_task(W.shape[1]), total.detach().numpy()

    def task(number: int) -> None:
        first, end = number * step, min(len(weights), (number + 1) * step)
        _add_rows(first, end, weights, gradient_parts, buffers.array("gradient", (W.shape[1],), torch.float32), sums)

    threads.run(task, -(-len(weights) // step))


@kernel
def _add_rows(first: Any, end: Any, weights: Any, parts: Any, g: Any, sums: Any) -> None:
    """Add the gradients of the rows `first` to `end` - 1 to those of sums [F, D]."""
    for f in range(first, end):
        form(f, weights[f], parts, False, g)
        add(ONE, g, sums[f])


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
    """An Adam step on the rows `first` to `end` - 1."""
    for f in range(first, end):
        form(f, weights[f], parts, project, g)
        _adam(weights[f], m[f], v[f], g, adam)


@inlined
def _adam(w: Any, m: Any, v: Any, g: Any, adam: Any) -> None:
    """An Adam step on one row [D], as torch computes it in float32."""
    for d in range(len(w)):
        slope = g[d] * adam.scale
        m[d] = m[d] * adam.beta1 + slope * adam.new1
        v[d] = v[d] * adam.beta2 + slope * slope * adam.new2
        w[d] -= adam.rate * m[d] / (np.sqrt(v[d]) * adam.correction + adam.eps)


@kernel
def _make_unit(rows: Any) -> None:
    """Scale each row [n, D] to norm 1, unless its norm is below the smallest normal float32."""
    for n in range(len(rows)):
        factor = np.float32(1 / max(np.sqrt(squared(rows[n])), _TINY))
        for d in range(rows.shape[1]):
            rows[n, d] *= factor
