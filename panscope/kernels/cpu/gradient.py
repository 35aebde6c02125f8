"""The gradient of one row of a matrix, computed when it is needed from the entries of its latent.

Shape letters: D width of the matrix, F rows of it, N entries, M rows of a source.
"""

from typing import Any, NamedTuple

import numpy as np

from panscope.kernels.backend import Gradient
from panscope.kernels.cpu.arithmetic import ONE, add, dot
from panscope.kernels.cpu.arrays import array
from panscope.kernels.cpu.compiled import inlined


class Parts(NamedTuple):
    """A `Gradient` as arrays; the arrays of missing parts are empty."""

    coefficients: Any
    """[N] float32."""
    source: Any
    """[M, D] float32."""
    places: Any
    """[N] int64, like `starts` and `order`."""
    starts: Any
    """[F + 1]."""
    order: Any
    """[N]."""
    radial: Any
    """[F] float32."""
    extra_index: Any
    """[F] int64."""
    extra: Any
    """[n, D] float32."""


def parts(gradient: Gradient) -> Parts:
    """The arrays of a gradient."""
    none, whole, rows = np.empty(0, np.float32), np.empty(0, np.int64), np.empty((0, 0), np.float32)
    radial = none if gradient.radial is None else array(gradient.radial)
    extra = (
        (whole, rows)
        if gradient.extra_index is None or gradient.extra is None
        else (array(gradient.extra_index), array(gradient.extra))
    )
    entries = gradient.contribution
    if entries is None:
        return Parts(none, rows, whole, whole, whole, radial, *extra)
    grouped = (array(entries.grouped.starts), array(entries.grouped.order))
    return Parts(array(entries.coefficients), array(entries.source), array(entries.places), *grouped, radial, *extra)


@inlined
def form(f: Any, w: Any, parts: Any, project: Any, g: Any) -> None:
    """g [D] = the gradient of row f, whose value is w; with `project`, without its component along w."""
    g[:] = 0
    if len(parts.starts) > 0:
        _gather(parts.starts[f], parts.starts[f + 1], parts, g)
    if len(parts.radial) > 0:
        add(parts.radial[f], w, g)
    if len(parts.extra_index) > 0 and parts.extra_index[f] >= 0:
        add(ONE, parts.extra[parts.extra_index[f]], g)
    if project:
        add(-dot(g, w), w, g)


@inlined
def _gather(first: Any, end: Any, parts: Any, g: Any) -> None:
    """Add the contributions of the entries `order[first:end]`, four at a time to read g a quarter as often."""
    order, places, coefficients, source = parts.order, parts.places, parts.coefficients, parts.source
    fours = end - (end - first) % 4
    for i in range(first, fours, 4):
        n0, n1, n2, n3 = order[i], order[i + 1], order[i + 2], order[i + 3]
        c0, c1, c2, c3 = coefficients[n0], coefficients[n1], coefficients[n2], coefficients[n3]
        s0, s1, s2, s3 = source[places[n0]], source[places[n1]], source[places[n2]], source[places[n3]]
        for d in range(len(g)):
            g[d] += c0 * s0[d] + c1 * s1[d] + c2 * s2[d] + c3 * s3[d]
    for i in range(fours, end):
        add(coefficients[order[i]], source[places[order[i]]], g)
