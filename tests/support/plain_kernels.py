"""The parts of a sparse step in a few lines of plain torch each, in any precision: what `ops` is tested with.

Shape letters: B rows, D width of a matrix, E output width, F latents, K codes a row, N entries, P prefixes.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from panscope.kernels.backend import (
    AdamStep,
    Entries,
    Finish,
    Gradient,
    Grouped,
    InputRows,
    Reconstruction,
    Screen,
)


class PlainKernels:
    name = "plain"
    description = "a few lines of torch"

    def parallel_for(self, work: Callable[[int], None], count: int) -> None:
        for number in range(count):
            work(number)

    def rows(self, x: Tensor, centre: Tensor | None) -> InputRows:
        rows = x if centre is None else x - centre
        return InputRows(rows, rows, rows.norm(dim=1), torch.zeros(len(rows)))

    def screen(self, W_enc: Tensor) -> Screen:
        return Screen(W_enc.clone(), W_enc.norm(dim=1), torch.zeros(len(W_enc)))

    def topk(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, k: int, norms: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        assert torch.equal(screen.low, W_enc), "the screen is not that of these weights"
        pre = rows.x @ W_enc.T + b_enc
        best, latents = (pre.relu() * (1 if norms is None else norms)).topk(k, dim=1)
        return pre.gather(1, latents) * (best > 0), latents * (best > 0)

    def above(
        self, rows: InputRows, W_enc: Tensor, b_enc: Tensor, screen: Screen, floor: Tensor, capacity: int
    ) -> Entries | None:
        assert torch.equal(screen.low, W_enc), "the screen is not that of these weights"
        pre = rows.x @ W_enc.T + b_enc
        there = pre > floor
        if there.sum() > capacity:
            return None
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), there.sum(dim=1).cumsum(0)])
        return Entries(pre[there], there.nonzero()[:, 1], starts)

    def reconstruct(
        self, codes: Entries, W_dec: Tensor, base: Tensor, y: Tensor, weights: Tensor, ends: Sequence[int]
    ) -> Reconstruction:
        rows = torch.arange(len(y)).repeat_interleave(codes.starts.diff())
        y_hat = base.expand_as(y).clone()
        prefix, pulls, loss = torch.bucketize(codes.latents, torch.tensor(ends), right=True), [], y.new_zeros(())
        for number in range(len(ends)):
            mine = prefix == number
            y_hat.index_add_(0, rows[mine], codes.values[mine, None] * W_dec[codes.latents[mine]])
            loss = loss + (weights * (y_hat - y).square().sum(dim=1)).sum() / len(ends)
            pulls.append(2 * weights[:, None] * (y_hat - y) / len(ends))
        pull = torch.stack(pulls).flip(0).cumsum(0).flip(0).flatten(0, 1)
        slopes = (pull[prefix * len(y) + rows] * W_dec[codes.latents]).sum(dim=1)
        return Reconstruction(loss, y_hat, (y_hat - y).square().sum(dim=1), slopes, pull)

    def group(self, latents: Tensor, width: int) -> Grouped:
        counts = torch.bincount(latents, minlength=width)
        return Grouped(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), latents.argsort(stable=True))

    def add_gradient(self, W: Tensor, gradient: Gradient, total: Tensor) -> None:
        total += dense_gradient(W, gradient)

    def squared_norm(self, W: Tensor, gradient: Gradient, project: bool) -> Tensor:
        return _projected(W, dense_gradient(W, gradient), project).double().square().sum()

    def update(self, W: Tensor, m: Tensor, v: Tensor, gradient: Gradient, adam: AdamStep, finish: Finish) -> None:
        if not adam.ok:
            return
        g = _projected(W, dense_gradient(W, gradient), finish.project) * adam.scale
        m.lerp_(g, 1 - adam.beta1)
        v.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
        root = v.sqrt() / math.sqrt(1 - adam.beta2**adam.step) + adam.eps
        W.addcdiv_(m, root, value=-adam.learning_rate / (1 - adam.beta1**adam.step))
        if finish.unit:
            W.div_(W.norm(dim=1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny))
        if finish.screen is not None:
            finish.screen.low.copy_(W)
            finish.screen.size.copy_(W.norm(dim=1))
        if finish.norms is not None:
            finish.norms.copy_(W.norm(dim=1))


def dense_gradient(W: Tensor, gradient: Gradient) -> Tensor:
    """What the parts of a gradient add up to, [F, D]."""
    g = torch.zeros_like(W)
    if gradient.contribution is not None:
        part = gradient.contribution
        latents = torch.empty_like(part.places)
        latents[part.grouped.order] = torch.arange(len(W)).repeat_interleave(part.grouped.starts.diff())
        g.index_add_(0, latents, part.coefficients[:, None] * part.source[part.places])
    if gradient.radial is not None:
        g += gradient.radial[:, None] * W
    if gradient.extra_index is not None:
        assert gradient.extra is not None
        there = gradient.extra_index >= 0
        g[there] += gradient.extra[gradient.extra_index[there]]
    return g


def _projected(W: Tensor, g: Tensor, project: bool) -> Tensor:
    return g - (g * W).sum(dim=1, keepdim=True) * W if project else g
