"""The operations implemented by kernels that compute active codes only; weight gradients are collected as sparse terms.

Selection finds the active codes without autograd. The objective then works on their [N] values, which autograd
differentiates as usual; for a matrix that the values depend on, the backward pass records the terms of its gradient
(`ledger.GradientTerms`), which the optimiser's kernel reads, in place of forming it.

Shape letters: B rows, D input width, E output width, F latents, K codes per row, N entries, P prefixes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from panscope.kernels.backend import Entries, Gradient, Grouped, InputRows, Kernels, Screen
from panscope.ops.base import Decoded, Encoder, Rows, TooDense
from panscope.ops.batch import BatchReductions
from panscope.ops.ledger import EntryTerms, GradientTerms
from panscope.types import Latents

MAX_ACTIVE_FRACTION = 1 / 8
"""Share of all codes that may be active; above it `DenseOps` is used, since gathering that many rows costs more than
dense products. Estimated from the throughput of both, not tuned."""
_GUESS_FACTOR = 0.9
"""BatchTopK first selects scores above this share of the guess; if there are too few, above ever smaller shares."""
_ATTEMPTS = 5


class SparseOps:
    """The operations for one coder; quantities that depend on its weights alone are cached between steps.

    They raise TooDense if more than `max_active_fraction` of all codes would be active; `active_fraction` is the share
    in the last selection.
    """

    def __init__(self, kernels: Kernels, max_active_fraction: float = MAX_ACTIVE_FRACTION) -> None:
        self.kernels = kernels
        self._max_active_fraction = max_active_fraction
        self.active_fraction = 0.0
        self._terms: dict[int, GradientTerms] = {}
        self._groups: dict[tuple[int, int], Grouped] = {}
        self._screen: Screen | None = None
        self._norms: Tensor | None = None

    def begin(self) -> None:
        """Discard the gradients of the last step."""
        self._terms.clear()
        self._groups.clear()

    def end_part(self) -> None:
        """After the backward pass of one of several parts: add its gradients up, so that its rows can be freed."""
        for terms in self._terms.values():
            terms.add_up(self.kernels, self._group)
        self._groups.clear()

    def weights_changed(self) -> None:
        """Discard cached quantities, because something other than `kernels.update` has changed the weights."""
        self._screen = None
        self._norms = None

    def screen(self, W_enc: Tensor) -> Screen:
        """The encoder's screen, which `kernels.update` keeps up to date."""
        if self._screen is None:
            self._screen = self.kernels.screen(W_enc.detach())
        return self._screen

    @property
    def cached_norms(self) -> Tensor | None:
        """[F] the decoder's norms, which `kernels.update` keeps up to date; None if they have not been computed."""
        return self._norms

    def gradient(self, W: Tensor) -> Gradient:
        """The gradient of W from the backward pass."""
        terms = self._terms.get(id(W))
        return Gradient() if terms is None else terms.gradient(self._group)

    def topk(self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None) -> Latents:
        """See `Ops`."""
        width = len(encoder.W)
        self._check(k * len(rows.x), rows, width)
        inputs, W, b = self._inputs(encoder, rows), encoder.W.detach(), encoder.b.detach()
        with record_function("panscope::encode"):
            pre, indices = self.kernels.topk(inputs, W, b, self.screen(W), k, norms)
        found = Latents(pre, width, indices)
        return found.with_values(torch.relu(self._differentiable(found, encoder, inputs)))

    def batch_topk(
        self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None, guess: Tensor
    ) -> tuple[Latents, Tensor]:
        """See `Ops`; raises TooDense if there is no guess."""
        self._check(k * len(rows.x), rows, len(encoder.W))
        inputs, count = self._inputs(encoder, rows), k * rows.batch.size(len(rows.x))
        found, scores = self._above_guess(encoder, inputs, norms, guess=guess, wanted=count, batch=rows.batch)
        chosen, least = rows.batch.largest(scores, count)
        kept = _select(found, chosen.sort().values)
        return kept.with_values(torch.relu(self._differentiable(kept, encoder, inputs))), least

    def above(self, encoder: Encoder, rows: Rows, floor: Tensor) -> Latents:
        """See `Ops`; returns only those above the floor."""
        inputs = self._inputs(encoder, rows)
        found = self._above(encoder, inputs, floor.detach())
        self.active_fraction = len(found.values) / max(1, len(rows.x) * len(encoder.W))
        return found.with_values(self._differentiable(found, encoder, inputs))

    def reconstruct(self, codes: Latents, W_dec: Tensor, base: Tensor, rows: Rows, ends: Sequence[int]) -> Decoded:
        """See `Ops`."""
        flat = codes.ragged()
        terms = self._gradient_terms(W_dec) if W_dec.requires_grad else None
        loss, y_hat, errors = _Reconstruct.apply(flat.values, base, flat, W_dec.detach(), rows, ends, self, terms)
        return Decoded(loss, y_hat, errors)

    def norms(self, W_dec: Tensor) -> Tensor:
        """See `Ops`."""
        if self._norms is None:
            self._norms = W_dec.detach().norm(dim=1)
        return _Norms.apply(W_dec, self._norms, self._gradient_terms(W_dec))

    def take(self, W: Tensor, index: Tensor) -> Tensor:
        """See `Ops`."""
        return _Take.apply(W, index, self._gradient_terms(W))

    def _inputs(self, encoder: Encoder, rows: Rows) -> InputRows:
        """The encoder's input rows; computed once for all coders that subtract nothing."""
        with record_function("panscope::rows"):
            if encoder.centre is not None:
                return self.kernels.rows(rows.x, encoder.centre.detach())
            return rows.prepared.get(self.kernels.name, lambda: self.kernels.rows(rows.x, None))

    def _check(self, entries: int, rows: Rows, width: int) -> None:
        self.active_fraction = entries / max(1, len(rows.x) * width)
        if self.active_fraction > self._max_active_fraction:
            raise TooDense

    def _above(self, encoder: Encoder, inputs: InputRows, floor: Tensor) -> Latents:
        W, b = encoder.W.detach(), encoder.b.detach()
        capacity = int(self._max_active_fraction * len(inputs.x) * len(W))
        with record_function("panscope::encode"):
            found = self.kernels.above(inputs, W, b, self.screen(W), floor, capacity)
        if found is None:
            raise TooDense
        return Latents(found.values, len(W), found.latents, found.starts)

    def _above_guess(
        self,
        encoder: Encoder,
        inputs: InputRows,
        norms: Tensor | None,
        *,
        guess: Tensor,
        wanted: int,
        batch: BatchReductions,
    ) -> tuple[Latents, Tensor]:
        """The codes and scores above a floor that at least `wanted` scores of the batch exceed.

        Raises TooDense if no such floor is found.
        """
        least = float(guess)
        if not least > 0:
            raise TooDense
        for attempt in range(_ATTEMPTS):
            least *= _GUESS_FACTOR ** (2**attempt)
            floor = inputs.x.new_full((len(encoder.W),), least)
            found = self._above(encoder, inputs, floor if norms is None else (floor / norms).nan_to_num(posinf=1e38))
            scores = found.values if norms is None else found.values * norms[found.indices]
            (total,) = batch.totals(torch.tensor(len(scores)))
            if total >= wanted:
                return found, scores
        raise TooDense

    def _differentiable(self, found: Latents, encoder: Encoder, inputs: InputRows) -> Tensor:
        """The selected pre-activations as a differentiable function of the encoder."""
        flat = found.ragged()
        pre = _Preactivations.apply(
            found.values.flatten(), encoder.W, encoder.b, encoder.centre, flat, inputs, self._gradient_terms(encoder.W)
        )
        return pre.view_as(found.values)

    def _gradient_terms(self, W: Tensor) -> GradientTerms:
        return self._terms.setdefault(id(W), GradientTerms(W))

    def _group(self, latents: Tensor, width: int) -> Grouped:
        """Entries by latent; cached, since encoder and decoder usually have the same entries."""
        key = (latents.data_ptr(), len(latents))
        if key not in self._groups:
            self._groups[key] = self.kernels.group(latents, width)
        return self._groups[key]


def _select(found: Latents, chosen: Tensor) -> Latents:
    """The entries of ragged codes at the ascending indices `chosen`."""
    assert found.indices is not None and found.starts is not None
    counts = torch.bincount(found.rows()[chosen], minlength=len(found))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Latents(found.values[chosen], found.width, found.indices[chosen], starts)


class _Preactivations(torch.autograd.Function):
    """Selected pre-activations [N] as a function of W_enc, b_enc and the vector subtracted from the rows."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        pre, _, b, centre, flat, rows, terms = inputs
        ctx.found, ctx.rows, ctx.terms = flat, rows, terms
        ctx.needs = (b.requires_grad, centre is not None)
        return pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        found, terms = ctx.found, ctx.terms
        terms.add_entries(EntryTerms(found.indices, gradient.contiguous(), ctx.rows.x, found.rows()))
        for_bias, has_centre = ctx.needs
        by_latent = found.over_rows(gradient) if for_bias or has_centre else None
        for_centre = -(by_latent @ terms.W.detach()) if has_centre else None
        return None, None, by_latent if for_bias else None, for_centre, None, None, None


class _Reconstruct(torch.autograd.Function):
    """The reconstruction loss as a function of the codes [N] and the base; the gradient of W_dec goes to its terms."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, base, flat, W_dec, rows, ends, ops, terms = inputs
        codes = Entries(values.detach(), flat.indices, flat.starts)
        with record_function("panscope::decode"):
            found = ops.kernels.reconstruct(codes, W_dec, base.detach(), rows.y, rows.weights, ends)
        ctx.found, ctx.codes, ctx.terms, ctx.ends = found, flat, terms, ends
        ctx.base_rows = base.dim() == 2
        ctx.values = codes.values
        ctx.mark_non_differentiable(found.y_hat, found.errors)
        return found.loss, found.y_hat, found.errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, codes, found = gradients[0], ctx.codes, ctx.found
        if ctx.terms is not None:
            source_rows = codes.rows()
            if len(ctx.ends) > 1:
                ends = torch.tensor(ctx.ends, device=source_rows.device)
                source_rows = source_rows + torch.bucketize(codes.indices, ends, right=True) * len(codes)
            ctx.terms.add_entries(EntryTerms(codes.indices, ctx.values * scale, found.pull, source_rows))
        for_base = None
        if ctx.needs_input_grad[1]:
            pull = found.pull[: len(codes)]
            for_base = (pull if ctx.base_rows else pull.sum(dim=0)) * scale
        return found.slopes * scale, for_base, None, None, None, None, None, None


class _Norms(torch.autograd.Function):
    """The norm of each row of a matrix, whose gradient is parallel to the row."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _, norms, terms = inputs
        ctx.norms, ctx.terms = norms, terms
        return norms.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        radial = gradients[0] / ctx.norms
        ctx.terms.add_radial(torch.where(ctx.norms > 0, radial, torch.zeros_like(radial)))
        return None, None, None


class _Take(torch.autograd.Function):
    """Selected rows of a matrix."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        W, index, terms = inputs
        ctx.index, ctx.terms = index, terms
        return W.detach()[index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.terms.add_rows(ctx.index, gradients[0])
        return None, None, None
