"""Which latents a logit is due to: activation times gradient, for every active latent of every coder in one pass.

To first order, f_i * dm/df_i is by how much the metric m would fall if latent i were ablated there (Marks et al. 2024,
Sparse Feature Circuits, attribution patching; Simonyan et al. 2014 for activation times gradient). The gradient is that
of `attach` with an error term: by way of the latent's decoder vector, with every coder else transparent, so that one
backward pass serves all coders.

Shape letters: N sequences, T tokens, V vocabulary, F latents.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from panscope.intervene.attach import Attached, Coders, attach, named_coders
from panscope.lms.model import LanguageModel
from panscope.loading.codes import Codes, stacked
from panscope.types import UserError

Metric = Callable[[Tensor], Tensor]
"""Logits [N, T, V] -> a number []."""


@dataclass(frozen=True)
class Logit:
    """The logit of a token, or how far it is ahead of that of another token (Wang et al. 2023, logit difference)."""

    token: int | str
    """Its id, or its text (with the space that it begins with), for models that are a `LanguageModel`."""
    position: int = -1
    """Where it is predicted: after the token of that place in the sequence, from 0, padding counted. Below 0 it counts
    from the end: to `attribution` that of the sequence's own tokens, padding left out; to logits alone the last place.
    """
    minus: int | str | None = None
    """The other token."""
    sequence: int = 0
    """Which of the N, from 0."""

    def __call__(self, logits: Tensor) -> Tensor:
        """[] of logits [N, T, V]; raises UserError for a sequence, position or token that is not there."""
        sequences, places, vocabulary = logits.shape
        _check_place(self, sequences, places)
        here = logits[self.sequence, self.position]
        token = here[_token_id("token", self.token, vocabulary)]
        return token if self.minus is None else token - here[_token_id("minus", self.minus, vocabulary)]

    def with_ids(self, model: LanguageModel | nn.Module) -> "Logit":
        """The same with token ids in place of texts; raises UserError for a text that is not one token of `model`."""
        minus = None if self.minus is None else _encoded("minus", self.minus, model)
        return replace(self, token=_encoded("token", self.token, model), minus=minus)

    def among(self, mask: Tensor) -> "Logit":
        """The same at a place of `mask` [N, T], counted from 0; raises UserError where that is padding, or nowhere."""
        _check_place(self, *mask.shape)
        own = mask[self.sequence].nonzero().flatten().tolist()
        place = own[self.position] if -len(own) <= self.position < 0 else self.position
        if place not in own:
            raise UserError(
                f"position {self.position} of a Logit is padding: sequence {self.sequence} has {len(own)} tokens of "
                "its own; name one of them, such as -1 for the last"
            )
        return replace(self, position=place)


def _token_id(name: str, token: int | str, vocabulary: int) -> int:
    if isinstance(token, str):
        raise UserError(f"{name} of a Logit is {token!r}: logits alone cannot look up a text, give the token's id")
    if not 0 <= token < vocabulary:
        raise UserError(f"{name} of a Logit is {token}: the model has {vocabulary} tokens, counted from 0")
    return token


def _encoded(name: str, token: int | str, model: LanguageModel | nn.Module) -> int:
    if not isinstance(token, str):
        return token
    if not isinstance(model, LanguageModel):
        raise UserError(f"{name} of a Logit is {token!r}: give the token's id, or the model as `load_model` gives it")
    ids = model.tokenizer.encode([token])[0]
    if len(ids) != 1:
        raise UserError(f"{name} of a Logit is {token!r}, which is {len(ids)} tokens of this model ({ids}): give one")
    return ids[0]


def _check_place(logit: Logit, sequences: int, places: int) -> None:
    if not 0 <= logit.sequence < sequences:
        raise UserError(f"sequence of a Logit is {logit.sequence}: there are {sequences}, counted from 0")
    if not -places <= logit.position < places:
        raise UserError(f"position of a Logit is {logit.position}: the sequence has {places} places, counted from 0")


@dataclass(frozen=True)
class Attribution:
    """What is due to the latents of one coder, in units of the metric (logits, for a `Logit`): activation times
    gradient (Simonyan et al. 2014), the indirect effect of each latent to first order (Marks et al. 2024)."""

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
        """The largest effects in size, each as (index, latent, effect).

        The index is (sequence, position), or (site, sequence, position) of a coder of several sites.
        """
        rows, latents, values = self.effects.entries()
        best = values.abs().topk(min(count, len(values))).indices
        places = torch.stack(torch.unravel_index(rows[best], self.codes.leading), dim=1)
        columns = (places.tolist(), latents[best].tolist(), values[best].tolist())
        return [(tuple(place), latent, value) for place, latent, value in zip(*columns, strict=True)]


def attribution(
    model: LanguageModel | nn.Module,
    coders: Coders,
    token_ids: Tensor | str,
    metric: Metric,
    *,
    attention_mask: Tensor | None = None,
) -> dict[str, Attribution]:
    """Activation times gradient of `metric(logits)` for every active latent of every coder, by its name: to first order
    by how much the metric would fall if the latent were ablated there (Marks et al. 2024, Sparse Feature Circuits;
    attribution patching; Simonyan et al. 2014).

    `token_ids` [N, T] int64 (or [T]), or one text, which a `LanguageModel` reads as in training; `attention_mask`
    shaped alike, False on padding, which is on the right; `metric` is a `Logit` or any differentiable function of the
    logits [N, T, V]. One pass forward and one back, also within torch.no_grad. Raises UserError for a metric that no
    gradient can follow, for a crosscoder, for a sequence, position or token that does not exist or is padding, within
    torch.inference_mode, and as `attach` does.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("attribution follows gradients, and torch.inference_mode allows none: leave it, or use no_grad")
    named = named_coders(coders)
    if not named:
        raise UserError("coders are none: give at least one, for whose latents to ask")
    hf: Any = model.model if isinstance(model, LanguageModel) else model
    with torch.enable_grad(), attach(model, named, gradients=True, splice=True, error_term=True) as seen:
        if isinstance(token_ids, str) and isinstance(model, LanguageModel):
            token_ids, attention_mask = model.tokens(token_ids)
        token_ids, mask = _checked(token_ids, attention_mask, hf.config.get_text_config().max_position_embeddings)
        asked = metric.with_ids(model).among(mask) if isinstance(metric, Logit) else metric
        device = next(hf.parameters()).device
        logits = hf(input_ids=token_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        value = asked(logits)
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise UserError(
                f"the metric gives {_told(value)}, without gradient or not one number: return one number that is a "
                "differentiable function of the logits"
            )
        return _attributions(seen, list(named), value)


def _told(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _checked(token_ids: Any, mask: Any, context: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [N, T]."""
    if not isinstance(token_ids, Tensor) or token_ids.dim() not in (1, 2):
        raise UserError(f"token_ids is {_told(token_ids)}: give a tensor [N, T] or [T], such as torch.tensor(ids)")
    token_ids = torch.atleast_2d(token_ids)
    if mask is not None and (not isinstance(mask, Tensor) or torch.atleast_2d(mask).shape != token_ids.shape):
        raise UserError(f"attention_mask is {_told(mask)}: give a tensor shaped as token_ids, {_told(token_ids)}")
    if token_ids.shape[1] > context:
        raise UserError(
            f"token_ids has {token_ids.shape[1]} tokens a sequence, but the model's context is {context}: cut the text "
            "into shorter sequences"
        )
    return token_ids, torch.ones_like(token_ids) if mask is None else torch.atleast_2d(mask)


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
