"""Every verb by kernels that touch active places only; weight gradients go to a ledger and from there into Adam.

Selection finds the active places without autograd. From there on an objective works on [N] numbers that autograd
follows as usual; where such numbers came from a matrix, the backward pass notes down what the matrix's gradient is a
sum of (`ledger.Account`) in place of forming it.

Shape letters: B rows, D input width, E output width, F latents, K codes a row, N entries, P prefixes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.profiler import record_function

from panscope.kernels.backend import Entries, Gradient, Grouped, InputRows, Kernels, Screen
from panscope.ops.base import Decoded, Encoder, Rows, TooDense
from panscope.ops.ledger import Account, Sum
from panscope.types import Latents

DENSEST = 1 / 8
"""Share of all places above which the dense way is taken, since gathering that many rows costs more than its products.
Estimated from the rates of both, not tuned."""
_LOWER = 0.9
"""BatchTopK looks for scores above this share of the guess; where too few are found, above ever smaller shares."""
_ATTEMPTS = 5


class SparseOps:
    """The verbs for one coder; what follows from its weights alone is kept from step to step.

    They raise TooDense where more than `densest` of all places would be touched; `touched` is the share of the last
    selection.
    """

    def __init__(self, kernels: Kernels, densest: float = DENSEST) -> None:
        self.kernels = kernels
        self._densest = densest
        self.touched = 0.0
        self._accounts: dict[int, Account] = {}
        self._groups: dict[tuple[int, int], Grouped] = {}
        self._screen: Screen | None = None
        self._norms: Tensor | None = None

    def begin(self) -> None:
        """Forget what the last step found."""
        self._accounts.clear()
        self._groups.clear()

    def weights_changed(self) -> None:
        """Forget what followed from weights that something other than `kernels.update` has changed."""
        self._screen = None
        self._norms = None

    def screen(self, W_enc: Tensor) -> Screen:
        """The encoder's screen, which `kernels.update` keeps true."""
        if self._screen is None:
            self._screen = self.kernels.screen(W_enc.detach())
        return self._screen

    @property
    def kept_norms(self) -> Tensor | None:
        """[F] the decoder's norms, which `kernels.update` keeps true; None where nobody has asked for them."""
        return self._norms

    def gradient(self, W: Tensor) -> Gradient:
        """What the backward pass found for W."""
        account = self._accounts.get(id(W))
        return Gradient() if account is None else account.gradient(lambda latents: self._group(latents, len(W)))

    def topk(self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None) -> Latents:
        """See `Ops`."""
        width = len(encoder.W)
        self._check(k * len(rows.x), rows, width)
        inputs, W, b = self._inputs(encoder, rows), encoder.W.detach(), encoder.b.detach()
        with record_function("panscope::encode"):
            pre, indices = self.kernels.topk(inputs, W, b, self.screen(W), k, norms)
        found = Latents(pre, width, indices)
        return found.with_values(torch.relu(self._followed(found, encoder, inputs)))

    def batch_topk(
        self, encoder: Encoder, rows: Rows, k: int, norms: Tensor | None, guess: Tensor
    ) -> tuple[Latents, Tensor]:
        """See `Ops`; without a guess there is nothing to go by but the dense way."""
        width, wanted = len(encoder.W), k * len(rows.x)
        self._check(wanted, rows, width)
        inputs = self._inputs(encoder, rows)
        found, scores = self._above_guess(encoder, inputs, norms, guess=guess, wanted=wanted)
        best, chosen = scores.topk(min(wanted, len(scores)), sorted=False)
        chosen, _ = chosen[best > 0].sort()
        kept = _only(found, chosen)
        least = best.masked_fill(best <= 0, torch.inf)
        least = least.min() if len(least) else least.new_tensor(torch.inf)
        return kept.with_values(torch.relu(self._followed(kept, encoder, inputs))), least

    def above(self, encoder: Encoder, rows: Rows, floor: Tensor) -> Latents:
        """See `Ops`; only those places are there."""
        inputs = self._inputs(encoder, rows)
        found = self._above(encoder, inputs, floor.detach())
        self.touched = len(found.values) / max(1, len(rows.x) * len(encoder.W))
        return found.with_values(self._followed(found, encoder, inputs))

    def reconstruct(self, codes: Latents, W_dec: Tensor, base: Tensor, rows: Rows, ends: Sequence[int]) -> Decoded:
        """See `Ops`."""
        flat = codes.ragged()
        account = self._account(W_dec) if W_dec.requires_grad else None
        loss, y_hat, errors = _Reconstruct.apply(flat.values, base, flat, W_dec.detach(), rows, ends, self, account)
        return Decoded(loss, y_hat, errors)

    def norms(self, W_dec: Tensor) -> Tensor:
        """See `Ops`."""
        if self._norms is None:
            self._norms = W_dec.detach().norm(dim=1)
        return _Norms.apply(W_dec, self._norms, self._account(W_dec))

    def take(self, W: Tensor, index: Tensor) -> Tensor:
        """See `Ops`."""
        return _Take.apply(W, index, self._account(W))

    def _inputs(self, encoder: Encoder, rows: Rows) -> InputRows:
        """The rows as this encoder reads them; made once for all coders that subtract nothing."""
        with record_function("panscope::rows"):
            if encoder.centre is not None:
                return self.kernels.rows(rows.x, encoder.centre.detach())
            return rows.prepared.get(self.kernels.name, lambda: self.kernels.rows(rows.x, None))

    def _check(self, entries: int, rows: Rows, width: int) -> None:
        self.touched = entries / max(1, len(rows.x) * width)
        if self.touched > self._densest:
            raise TooDense

    def _above(self, encoder: Encoder, inputs: InputRows, floor: Tensor) -> Latents:
        W, b = encoder.W.detach(), encoder.b.detach()
        capacity = int(self._densest * len(inputs.x) * len(W))
        with record_function("panscope::encode"):
            found = self.kernels.above(inputs, W, b, self.screen(W), floor, capacity)
        if found is None:
            raise TooDense
        return Latents(found.values, len(W), found.latents, found.starts)

    def _above_guess(
        self, encoder: Encoder, inputs: InputRows, norms: Tensor | None, *, guess: Tensor, wanted: int
    ) -> tuple[Latents, Tensor]:
        """At least the `wanted` largest scores, or all that are positive, and where they are."""
        least = float(guess)
        if not least > 0:
            raise TooDense
        for attempt in range(_ATTEMPTS):
            least *= _LOWER ** (2**attempt)
            floor = inputs.x.new_full((len(encoder.W),), least)
            found = self._above(encoder, inputs, floor if norms is None else (floor / norms).nan_to_num(posinf=1e38))
            scores = found.values if norms is None else found.values * norms[found.indices]
            if len(scores) >= wanted:
                return found, scores
        raise TooDense

    def _followed(self, found: Latents, encoder: Encoder, inputs: InputRows) -> Tensor:
        """The pre-activations that were found, now with what they came from."""
        flat = found.ragged()
        pre = _Preactivations.apply(
            found.values.flatten(), encoder.W, encoder.b, encoder.centre, flat, inputs, self._account(encoder.W)
        )
        return pre.view_as(found.values)

    def _account(self, W: Tensor) -> Account:
        return self._accounts.setdefault(id(W), Account(W))

    def _group(self, latents: Tensor, width: int) -> Grouped:
        """Encoder and decoder mostly have the same entries: they are sorted once."""
        key = (latents.data_ptr(), len(latents))
        if key not in self._groups:
            self._groups[key] = self.kernels.group(latents, width)
        return self._groups[key]


def _only(found: Latents, chosen: Tensor) -> Latents:
    """The ragged codes at the places `chosen`, rising."""
    assert found.indices is not None and found.starts is not None
    counts = torch.bincount(found.rows()[chosen], minlength=len(found))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Latents(found.values[chosen], found.width, found.indices[chosen], starts)


class _Preactivations(torch.autograd.Function):
    """pre [N] at chosen places as a function of W_enc, b_enc and what is subtracted from the rows."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        pre, _, b, centre, flat, rows, account = inputs
        ctx.found, ctx.rows, ctx.account = flat, rows, account
        ctx.wanted = (b.requires_grad, centre is not None)
        return pre.view_as(pre)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        found, account = ctx.found, ctx.account
        account.add_sum(Sum(found.indices, gradient.contiguous(), ctx.rows.x, found.rows()))
        for_bias, has_centre = ctx.wanted
        by_latent = found.over_rows(gradient) if for_bias or has_centre else None
        for_centre = -(by_latent @ account.W.detach()) if has_centre else None
        return None, None, by_latent if for_bias else None, for_centre, None, None, None


class _Reconstruct(torch.autograd.Function):
    """The reconstruction loss as a function of the codes [N] and the base; W_dec's part goes to its account."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, base, flat, W_dec, rows, ends, ops, account = inputs
        codes = Entries(values.detach(), flat.indices, flat.starts)
        with record_function("panscope::decode"):
            found = ops.kernels.reconstruct(codes, W_dec, base.detach(), rows.y, rows.weights, ends)
        ctx.found, ctx.codes, ctx.account, ctx.ends = found, flat, account, ends
        ctx.base_rows = base.dim() == 2
        ctx.values = codes.values
        ctx.mark_non_differentiable(found.y_hat, found.errors)
        return found.loss, found.y_hat, found.errors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, codes, found = gradients[0], ctx.codes, ctx.found
        if ctx.account is not None:
            places = codes.rows()
            if len(ctx.ends) > 1:
                ends = torch.tensor(ctx.ends, device=places.device)
                places = places + torch.bucketize(codes.indices, ends, right=True) * len(codes)
            ctx.account.add_sum(Sum(codes.indices, ctx.values * scale, found.pull, places))
        for_base = None
        if ctx.needs_input_grad[1]:
            pull = found.pull[: len(codes)]
            for_base = (pull if ctx.base_rows else pull.sum(dim=0)) * scale
        return found.slopes * scale, for_base, None, None, None, None, None, None


class _Norms(torch.autograd.Function):
    """The norm of each row of a matrix: its gradient lies along the row."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _, norms, account = inputs
        ctx.norms, ctx.account = norms, account
        return norms.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        along = gradients[0] / ctx.norms
        ctx.account.add_radial(torch.where(ctx.norms > 0, along, torch.zeros_like(along)))
        return None, None, None


class _Take(torch.autograd.Function):
    """Rows of a matrix."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        W, index, account = inputs
        ctx.index, ctx.account = index, account
        return W.detach()[index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.account.add_rows(ctx.index, gradients[0])
        return None, None, None
