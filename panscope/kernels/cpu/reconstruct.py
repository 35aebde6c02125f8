"""Decodes codes and computes the gradients of the squared error for codes and decoder, row by row.

A row's reconstruction accumulates prefix by prefix in place (Bussmann et al. 2025, Matryoshka; other coders have one
prefix). The gradient of what prefix p adds to a row, `pull`, sums the errors of its own and of all later
reconstructions.

Shape letters: B rows, E output width, F latents, N entries, P prefixes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from panscope.kernels.backend import Entries, Reconstruction
from panscope.kernels.cpu.arithmetic import ONE, add, copy, dot
from panscope.kernels.cpu.arrays import array
from panscope.kernels.cpu.compiled import inlined, kernel
from panscope.kernels.cpu.threads import Threads

_ROWS_PER_TASK = 64


def reconstruct(
    threads: Threads, codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
) -> Reconstruction:
    """`Kernels.reconstruct`."""
    rows, width = y.shape
    y_hat, pull = torch.empty(rows, width), torch.empty(len(ends) * rows, width)
    slopes, errors = torch.empty(len(codes.values)), torch.empty(rows)
    losses = np.empty(rows)
    inputs = [
        array(each) for each in (codes.values, codes.latents, codes.starts, W_dec, base.view(-1, width), y, weights)
    ]
    results = [array(y_hat), array(pull).reshape(len(ends), rows, width), array(slopes), array(errors), losses]
    bounds = np.array([0, *ends], np.int64)

    def task(number: int) -> None:
        first = number * _ROWS_PER_TASK
        _rows(first, min(rows, first + _ROWS_PER_TASK), *inputs, bounds, *results)

    threads.run(task, -(-rows // _ROWS_PER_TASK))
    return Reconstruction(torch.tensor(losses.sum(), dtype=torch.float32), y_hat, errors, slopes, pull)


@kernel
def _rows(  # noqa: PLR0913
    first: Any,
    end: Any,
    values: Any,
    latents: Any,
    starts: Any,
    W_dec: Any,
    base: Any,
    y: Any,
    weights: Any,
    bounds: Any,
    y_hat: Any,
    pull: Any,
    slopes: Any,
    errors: Any,
    losses: Any,
) -> None:
    """Compute all outputs of rows `first` to `end` - 1; losses [B] float64 is each row's share of the loss."""
    prefixes = len(bounds) - 1
    for b in range(first, end):
        row, error, losses[b] = y_hat[b], 0.0, 0.0
        copy(base[b if len(base) > 1 else 0], row)
        entries, codes = latents[starts[b] : starts[b + 1]], values[starts[b] : starts[b + 1]]
        for p in range(prefixes):
            _decode(codes, entries, bounds[p], bounds[p + 1], W_dec, row)
            error = _differ(row, y[b], np.float32(2 * weights[b] / prefixes), pull[p, b])
            losses[b] += np.float64(weights[b]) * error / prefixes
        errors[b] = error
        for p in range(prefixes - 2, -1, -1):
            add(ONE, pull[p + 1, b], pull[p, b])
        for n in range(len(entries)):
            p = 0
            while entries[n] >= bounds[p + 1]:
                p += 1
            slopes[starts[b] + n] = dot(pull[p, b], W_dec[entries[n]])


@inlined
def _decode(values: Any, latents: Any, least: Any, end: Any, W_dec: Any, row: Any) -> None:
    """Add values times decoder rows to `row` [E], for the latents from `least` to `end` - 1; four entries at a time."""
    held, n0, n1, n2 = 0, 0, 0, 0
    for n in range(len(values)):
        if latents[n] < least or latents[n] >= end or values[n] == 0:
            continue
        if held < 3:
            n0, n1, n2 = n, n0, n1
            held += 1
            continue
        v0, v1, v2, v3 = values[n0], values[n1], values[n2], values[n]
        w0, w1, w2, w3 = W_dec[latents[n0]], W_dec[latents[n1]], W_dec[latents[n2]], W_dec[latents[n]]
        for e in range(len(row)):
            row[e] += v0 * w0[e] + v1 * w1[e] + v2 * w2[e] + v3 * w3[e]
        held = 0
    if held > 2:
        add(values[n2], W_dec[latents[n2]], row)
    if held > 1:
        add(values[n1], W_dec[latents[n1]], row)
    if held > 0:
        add(values[n0], W_dec[latents[n0]], row)


@inlined
def _differ(y_hat: Any, y: Any, factor: Any, pull: Any) -> Any:
    """pull = factor (y_hat - y) [E]; returns the squared distance, in float64."""
    error = 0.0
    for e in range(len(y)):
        gap = y_hat[e] - y[e]
        pull[e] = factor * gap
        error += np.float64(gap) * np.float64(gap)
    return error
