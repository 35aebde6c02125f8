"""Which latents a logit is due to: activation times gradient, for every active latent of every coder in one pass.

To first order, f_i * dm/df_i is by how much the metric m would fall if latent i were ablated there (Marks et al. 2024,
Sparse Feature Circuits, attribution patching; Simonyan et al. 2014 for activation times gradient). The gradient is that
of `attach` with an error term: by way of the latent's decoder vector, with every coder else transparent, so that one
backward pass serves all coders.

Shape letters: N sequences, T tokens, V vocabulary, F latents.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panscope.analysis.attach import Attached, Coders, attach, named_coders
from panscope.analysis.codes import Codes, stacked
from panscope.lms.model import LanguageModel
from panscope.types import UserError

Metric = Callable[[Tensor], Tensor]
"""Logits [N, T, V] -> a number []."""


@dataclass(frozen=True)
class Logit:
    """The logit of a token, or by how much it exceeds that of another token."""

    token: int
    position: int = -1
    """Where it is predicted: after the token of that place."""
    minus: int | None = None
    """The other token."""
    sequence: int = 0

    def __call__(self, logits: Tensor) -> Tensor:
        """[] of logits [N, T, V]."""
        here = logits[self.sequence, self.position]
        return here[self.token] if self.minus is None else here[self.token] - here[self.minus]


@dataclass(frozen=True)
class Attribution:
    """What is due to the latents of one coder, in units of the metric."""

    codes: Codes
    """The activations: leading shape [N, T], or [sites, N, T] of a multilayer coder."""
    gradients: Tensor
    """Shaped as `codes.values`: the metric's derivative for each of them."""

    @property
    def effects(self) -> Codes:
        """Activation times gradient at each active place; may be below 0."""
        return self.codes.with_values(self.codes.values.detach() * self.gradients)

    def by_latent(self) -> Tensor:
        """[F] the sum over all places."""
        effects = self.effects
        return effects.over_rows(effects.values)

    def top(self, count: int = 10) -> list[tuple[tuple[int, ...], int, float]]:
        """The places with the largest effects in size: (place in the leading shape, latent, effect)."""
        rows, latents, values = self.effects.places()
        best = values.abs().topk(min(count, len(values))).indices
        places = torch.stack(torch.unravel_index(rows[best], self.codes.leading), dim=1)
        columns = (places.tolist(), latents[best].tolist(), values[best].tolist())
        return [(tuple(place), latent, value) for place, latent, value in zip(*columns, strict=True)]


def attribution(
    model: LanguageModel | nn.Module,
    coders: Coders,
    token_ids: Tensor,
    metric: Metric,
    *,
    attention_mask: Tensor | None = None,
) -> dict[str, Attribution]:
    """Activation times gradient of `metric(logits)` for every active latent of every coder.

    `token_ids` [N, T] int64 (or [T]), `attention_mask` [N, T] bool, False on padding, which is on the right; `metric`
    is a `Logit` or any differentiable function of the logits [N, T, V]. Raises UserError for a metric that no gradient
    can follow, for a crosscoder, and as `attach` does.
    """
    token_ids = token_ids[None] if token_ids.dim() == 1 else token_ids
    hf = model.model if isinstance(model, LanguageModel) else model
    device = next(hf.parameters()).device
    mask = torch.ones_like(token_ids) if attention_mask is None else attention_mask
    with torch.enable_grad(), attach(model, coders, gradients=True, splice=True, error_term=True) as seen:
        logits = hf(input_ids=token_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        value = metric(logits)
        if value.dim() or not value.requires_grad:
            raise UserError(
                f"the metric gives {tuple(value.shape)}, without gradient or not one number: return one number that "
                "is a differentiable function of the logits"
            )
        return _attributions(seen, list(named_coders(coders)), value)


def _attributions(seen: Attached, names: list[str], value: Tensor) -> dict[str, Attribution]:
    parts = {name: list(seen.parts(name).values()) for name in names}
    leaves = [codes.values for name in names for codes in parts[name]]
    found = iter(torch.autograd.grad(value, leaves, allow_unused=True))
    result = {}
    for name in names:
        codes = [part.with_values(part.values.detach()) for part in parts[name]]
        gradients = [torch.zeros_like(part.values) if g is None else g for part, g in zip(codes, found, strict=False)]
        both = codes[0] if len(codes) == 1 else stacked(codes)
        slopes = [part.with_values(g) for part, g in zip(codes, gradients, strict=True)]
        result[name] = Attribution(both, slopes[0].values if len(slopes) == 1 else _stacked_like(codes, slopes))
    return result


def _stacked_like(codes: list[Codes], slopes: list[Codes]) -> Tensor:
    """The gradients in the order in which `stacked` puts the codes."""
    layouts = {(part.indices is None, part.starts is None, part.values.shape[1:]) for part in codes}
    if len(layouts) == 1 and codes[0].starts is None:
        return torch.cat([part.values for part in slopes])
    return torch.cat([_at_places(part, slope) for part, slope in zip(codes, slopes, strict=True)])


def _at_places(codes: Codes, slope: Codes) -> Tensor:
    """[N] the gradients at active places, row after row."""
    if codes.indices is None:
        rows, latents = codes.values.nonzero(as_tuple=True)
        return slope.values[rows, latents]
    return slope.values.flatten()[codes.values.flatten() != 0]
