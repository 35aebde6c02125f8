"""The k largest of each row: screened, bounded, rescored exactly.

The k-th largest of the groups' lower bounds is at most the true k-th score, so only latents whose upper bound reaches
it are candidates. The k best of them by screened score are rescored; the worst of these is a sharper threshold, and
the other candidates whose upper bound reaches it are rescored too. The k best exact scores are selected, the lower
latents first among equal ones. So the result is the same as that of exact scoring, for any screen.

Shape letters: B rows, D input width, F latents, G groups, K codes per row.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from panscope.kernels.cpu.arithmetic import LEAST, ZERO, bits_of, dots, from_bits, kth_largest, lowest_bit, widen
from panscope.kernels.cpu.arrays import Buffers, array
from panscope.kernels.cpu.bound import GROUP, can_screen, everything, highest, lift, lowest, passing, row_bound
from panscope.kernels.cpu.compiled import inlined, kernel
from panscope.kernels.cpu.product import Screened, ScreenQuery, over_chunks, place, promising
from panscope.kernels.cpu.threads import Threads


class TopKWork(NamedTuple):
    """Buffers for one row."""

    keys: Any
    """[F + 64] int32."""
    candidates: Any
    """[F] int64 latents, ascending."""
    screened: Any
    """[F] float32 of each candidate, like `pre` and `score`."""
    pre: Any
    score: Any
    chosen: Any
    """[F + 3] int64 indices of candidates."""


def work(buffers: Buffers, latents: int) -> TopKWork:
    """This thread's buffers."""
    one, whole = torch.float32, torch.int64
    shapes = {"keys": (latents + 64, torch.int32), "candidates": (latents, whole), "screened": (latents, one)}
    shapes |= {"pre": (latents, one), "score": (latents, one), "chosen": (latents + 3, whole)}
    return TopKWork(**{name: buffers.array(name, (size,), dtype) for name, (size, dtype) in shapes.items()})


def topk(threads: Threads, buffers: Buffers, query: ScreenQuery, k: int) -> tuple[Tensor, Tensor]:
    """`Kernels.topk`."""
    x, W_enc, b_enc = array(query.rows.x), array(query.W_enc), array(query.b_enc)
    size = array(query.rows.size)
    pre, latents = torch.empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64)
    values, places = array(pre), array(latents)

    def visit(query: ScreenQuery, screened: Screened, may_waste: int) -> int:
        lost, memory = array(query.rows.lost), work(buffers, len(W_enc))
        return _rows(screened, x, size, lost, W_enc, b_enc, query.terms, may_waste, memory, values, places)

    over_chunks(threads, buffers, query, visit)
    return pre, latents


@kernel
def _rows(  # noqa: PLR0913
    screened: Any,
    x: Any,
    size: Any,
    lost: Any,
    W_enc: Any,
    b_enc: Any,
    terms: Any,
    may_waste: Any,
    work: Any,
    values: Any,
    places: Any,
) -> Any:
    """Write the screened rows of `values` and `places` [B, K]; returns the first row not done.

    Stops before the end if more than `may_waste` latents are rescored without being selected.
    """
    k, end = values.shape[1], screened.first + len(screened.maxima)
    for b in range(screened.first, end):
        values[b], places[b] = ZERO, 0
        if np.isnan(size[b]):
            continue
        a, c, z = row_bound(size[b], lost[b], terms)
        if can_screen(size[b], a, c, terms):
            count = _candidates(screened, b, a, c, z, terms, k, work)
            threshold, chosen = _best(count, k, work)
            may_waste -= max(0, chosen - k)
            if may_waste < 0:
                return b
            sharper = _rescore(x[b], W_enc, b_enc, terms, chosen, work)
            chosen = _others(count, threshold, sharper, a, c, z, terms, work)
            may_waste -= chosen
            if may_waste < 0:
                return b
        else:
            count = chosen = everything(len(W_enc), work)
        _rescore(x[b], W_enc, b_enc, terms, chosen, work)
        _keep(count, k, work, values[b], places[b])
    return end


@inlined
def _candidates(  # noqa: PLR0913
    screened: Any, b: Any, a: Any, c: Any, z: Any, terms: Any, k: Any, work: Any
) -> Any:
    """List the latents that may be among the k best of row b; returns their number."""
    maxima, keys = screened.maxima[b - screened.first], work.keys
    for g in range(len(maxima)):
        keys[g] = bits_of(lowest(maxima[g], lift(g, a, c, z, terms), terms))
    floor, count = max(LEAST, from_bits(kth_largest(keys, len(maxima), k))), 0
    for i in range(promising(screened, b, floor, terms, work.chosen)):
        g = work.chosen[i]
        first = place(screened, b, g * GROUP, len(terms.scale))
        word = passing(screened.products, first, g * GROUP, lift(g, a, c, z, terms), terms, floor)
        while word != 0:
            n = lowest_bit(word)
            word = np.int32(word & (word - 1))
            f = g * GROUP + n
            work.candidates[count], work.score[count] = f, ZERO
            work.screened[count] = widen(screened.products[first + n]) * terms.scale[f] + terms.shift[f]
            count += 1
    return count


@inlined
def _best(count: Any, k: Any, work: Any) -> Any:
    """Choose the candidates with the k best screened scores and ties with the last: (the k-th score, their number)."""
    threshold, chosen = ZERO, 0
    if count > k:
        for j in range(count):
            work.keys[j] = bits_of(max(work.screened[j], ZERO))
        threshold = from_bits(kth_largest(work.keys, count, k))
    for j in range(count):
        if max(work.screened[j], ZERO) >= threshold:
            work.chosen[chosen] = j
            chosen += 1
    return threshold, chosen


@inlined
def _others(  # noqa: PLR0913
    count: Any, threshold: Any, sharper: Any, a: Any, c: Any, z: Any, terms: Any, work: Any
) -> Any:
    """Choose the candidates below `threshold` whose exact score may reach `sharper`; returns their number."""
    chosen = 0
    for j in range(count):
        score = work.screened[j]
        if max(score, ZERO) < threshold and highest(work.candidates[j], score, a, c, z, terms) >= sharper:
            work.chosen[chosen] = j
            chosen += 1
    return chosen


@inlined
def _rescore(x: Any, W_enc: Any, b_enc: Any, terms: Any, chosen: Any, work: Any) -> Any:
    """Compute the exact scores of the chosen candidates, 0 if negative; returns the least, or `LEAST` if it is 0."""
    if chosen == 0:
        return LEAST
    dots(x, W_enc, work.candidates, work.chosen, chosen, work.pre)
    least = np.float32(np.inf)
    for n in range(chosen):
        j = work.chosen[n]
        f = work.candidates[j]
        work.pre[j] += b_enc[f]
        score = work.pre[j] * terms.scale[f]
        work.score[j] = score if score > 0 else ZERO
        least = min(least, work.score[j])
    return max(least, LEAST)


@inlined
def _keep(count: Any, k: Any, work: Any, values: Any, places: Any) -> None:
    """Write the candidates with the k best positive scores, the first among equal ones."""
    keys, threshold, above = work.keys, np.int32(1), 0
    for j in range(count):
        keys[j] = bits_of(work.score[j])
    if count > k:
        threshold = max(threshold, np.int32(kth_largest(keys, count, k)))
    for j in range(count):
        above += keys[j] > threshold
    equal, kept = k - above, 0
    for j in range(count):
        tie = keys[j] == threshold
        if keys[j] > threshold or (tie and equal > 0):
            equal -= tie
            values[kept], places[kept] = work.pre[j], work.candidates[j]
            kept += 1
