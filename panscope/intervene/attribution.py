"""Attribution of a logit to latents: activation times gradient, for every active latent of every coder in one pass.

To first order, f_i * dm/df_i is how much the metric m would fall if latent i were ablated at that position (Marks et
al. 2024, Sparse Feature Circuits, attribution patching; Simonyan et al. 2014 for activation times gradient). The
gradient is that of `attach` with an error term: it flows through the latent's decoder vector, and through other coders
as if they were absent, so that one backward pass serves all coders.

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
"""Logits [N, T, V] -> scalar []."""


@dataclass(frozen=True)
class Logit:
    """The logit of a token, or its difference to the logit of another token (Wang et al. 2023, logit difference)."""

    token: int | str
    """Its id or, if the model is a `LanguageModel`, its text, including the space that it begins with."""
    position: int = -1
    """The position of the token after which it is predicted, from 0, padding included. Negative positions count from
    the end: in `attribution` without padding, for logits alone with it."""
    minus: int | str | None = None
    """The token whose logit is subtracted."""
    sequence: int = 0
    """Index of the sequence, from 0."""

    def __call__(self, logits: Tensor) -> Tensor:
        """The metric [] of logits [N, T, V]; raises UserError for a sequence, position or token that does not exist."""
        sequences, positions, vocabulary = logits.shape
        _check_indices(self, sequences, positions)
        at_position = logits[self.sequence, self.position]
        token = at_position[_token_id("token", self.token, vocabulary)]
        return token if self.minus is None else token - at_position[_token_id("minus", self.minus, vocabulary)]

    def with_ids(self, model: LanguageModel | nn.Module) -> "Logit":
        """A copy with token ids in place of texts; raises UserError for a text that is not one token of `model`."""
        minus = None if self.minus is None else _encoded("minus", self.minus, model)
        return replace(self, token=_encoded("token", self.token, model), minus=minus)

    def with_position(self, mask: Tensor) -> "Logit":
        """A copy with its position counted from 0, given the mask [N, T] (False on padding).

        Raises UserError for a position that does not exist or is padding.
        """
        _check_indices(self, *mask.shape)
        own = mask[self.sequence].nonzero().flatten().tolist()
        position = own[self.position] if -len(own) <= self.position < 0 else self.position
        if position not in own:
            raise UserError(
                f"position {self.position} of a Logit is padding: sequence {self.sequence} has {len(own)} tokens that "
                "are not padding; name one of them, such as -1 for the last"
            )
        return replace(self, position=position)


def _token_id(name: str, token: int | str, vocabulary: int) -> int:
    if isinstance(token, str):
        raise UserError(f"{name} of a Logit is {token!r}: logits alone do not contain token texts, give the token's id")
    if not 0 <= token < vocabulary:
        raise UserError(f"{name} of a Logit is {token}: the model has {vocabulary} tokens, counted from 0")
    return token


def _encoded(name: str, token: int | str, model: LanguageModel | nn.Module) -> int:
    if not isinstance(token, str):
        return token
    if not isinstance(model, LanguageModel):
        raise UserError(f"{name} of a Logit is {token!r}: give the token's id, or the model as `load_model` returns it")
    ids = model.tokenizer.encode([token])[0]
    if len(ids) != 1:
        raise UserError(f"{name} of a Logit is {token!r}, which is {len(ids)} tokens of this model ({ids}): give one")
    return ids[0]


def _check_indices(logit: Logit, sequences: int, positions: int) -> None:
    if not 0 <= logit.sequence < sequences:
        raise UserError(f"sequence of a Logit is {logit.sequence}: there are {sequences}, counted from 0")
    if not -positions <= logit.position < positions:
        raise UserError(
            f"position of a Logit is {logit.position}: the sequence has {positions} positions, counted from 0"
        )


@dataclass(frozen=True)
class Attribution:
    """The attribution of a metric to the latents of one coder, in units of the metric (logits, for a `Logit`).

    It is activation times gradient (Simonyan et al. 2014), the indirect effect of each latent to first order (Marks et
    al. 2024).
    """

    codes: Codes
    """The activations: leading shape [N, T], or [sites, N, T] for a multilayer coder."""
    gradients: Tensor
    """The metric's gradient with respect to `codes.values`, of the same shape."""

    @property
    def effects(self) -> Codes:
        """Activation times gradient of each active code; may be negative."""
        return self.codes.with_values(self.codes.values.detach() * self.gradients)

    def by_latent(self) -> Tensor:
        """[F] the effects summed over all positions."""
        effects = self.effects
        return effects.over_rows(effects.values)

    def top(self, count: int = 10) -> list[tuple[tuple[int, ...], int, float]]:
        """The `count` effects of largest magnitude, each as (index, latent, effect).

        The index is (sequence, position), or (site, sequence, position) for a coder of several sites.
        """
        rows, latents, values = self.effects.entries()
        best = values.abs().topk(min(count, len(values))).indices
        indices = torch.stack(torch.unravel_index(rows[best], self.codes.leading), dim=1)
        columns = (indices.tolist(), latents[best].tolist(), values[best].tolist())
        return [(tuple(index), latent, value) for index, latent, value in zip(*columns, strict=True)]


def attribution(
    model: LanguageModel | nn.Module,
    coders: Coders,
    token_ids: Tensor | str,
    metric: Metric,
    *,
    attention_mask: Tensor | None = None,
) -> dict[str, Attribution]:
    """Activation times gradient of `metric(logits)` for every active latent of every coder, by coder name.

    To first order, this is how much the metric would fall if the latent were ablated at that position (Marks et al.
    2024, Sparse Feature Circuits; attribution patching; Simonyan et al. 2014).

    `token_ids` [N, T] int64 (or [T]), or one text, which a `LanguageModel` tokenises as in training; `attention_mask`
    of the same shape, False on padding, which is on the right; `metric` is a `Logit` or any differentiable function of
    the logits [N, T, V]. Runs one forward and one backward pass, also under torch.no_grad. Raises UserError for a
    metric without gradient, for a crosscoder, for a sequence, position or token that does not exist or is padding,
    under torch.inference_mode, and as `attach` does.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("attribution needs gradients, which torch.inference_mode forbids: use torch.no_grad instead")
    named = named_coders(coders)
    if not named:
        raise UserError("coders is empty: give at least one coder, to whose latents the metric is attributed")
    hf: Any = model.model if isinstance(model, LanguageModel) else model
    with torch.enable_grad(), attach(model, named, gradients=True, splice=True, error_term=True) as attached:
        if isinstance(token_ids, str) and isinstance(model, LanguageModel):
            token_ids, attention_mask = model.tokens(token_ids)
        token_ids, mask = _checked(token_ids, attention_mask, hf.config.get_text_config().max_position_embeddings)
        resolved = metric.with_ids(model).with_position(mask) if isinstance(metric, Logit) else metric
        device = next(hf.parameters()).device
        logits = hf(input_ids=token_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        value = resolved(logits)
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise UserError(
                f"the metric returns {_describe(value)}, which has no gradient or is not a scalar: return a scalar "
                "that is a differentiable function of the logits"
            )
        return _attributions(attached, list(named), value)


def _describe(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _checked(token_ids: Any, mask: Any, context: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [N, T]."""
    if not isinstance(token_ids, Tensor) or token_ids.dim() not in (1, 2):
        raise UserError(f"token_ids is {_describe(token_ids)}: give a tensor [N, T] or [T], such as torch.tensor(ids)")
    token_ids = torch.atleast_2d(token_ids)
    if mask is not None and (not isinstance(mask, Tensor) or torch.atleast_2d(mask).shape != token_ids.shape):
        raise UserError(
            f"attention_mask is {_describe(mask)}: give a tensor of the shape of token_ids, {_describe(token_ids)}"
        )
    if token_ids.shape[1] > context:
        raise UserError(
            f"token_ids has {token_ids.shape[1]} tokens a sequence, but the model's context is {context}: cut the text "
            "into shorter sequences"
        )
    return token_ids, torch.ones_like(token_ids) if mask is None else torch.atleast_2d(mask)


def _attributions(attached: Attached, names: list[str], value: Tensor) -> dict[str, Attribution]:
    parts = {name: list(attached.parts(name).values()) for name in names}
    leaves = [codes.values for name in names for codes in parts[name]]
    found = iter(torch.autograd.grad(value, leaves, allow_unused=True))
    result = {}
    for name in names:
        codes = [part.with_values(part.values.detach()) for part in parts[name]]
        gradients = [torch.zeros_like(part.values) if g is None else g for part, g in zip(codes, found, strict=False)]
        both = codes[0] if len(codes) == 1 else stacked(codes)
        grads = [part.with_values(g) for part, g in zip(codes, gradients, strict=True)]
        result[name] = Attribution(both, grads[0].values if len(grads) == 1 else _stacked_like(codes, grads))
    return result


def _stacked_like(codes: list[Codes], gradients: list[Codes]) -> Tensor:
    """The gradients in the layout that `stacked` gives the codes."""
    layouts = {(part.indices is None, part.starts is None, part.values.shape[1:]) for part in codes}
    if len(layouts) == 1 and codes[0].starts is None:
        return torch.cat([part.values for part in gradients])
    return torch.cat([_of_active(part, gradient) for part, gradient in zip(codes, gradients, strict=True)])


def _of_active(codes: Codes, gradient: Codes) -> Tensor:
    """The gradients of the active codes, flat, in row order."""
    if codes.indices is None:
        rows, latents = codes.values.nonzero(as_tuple=True)
        return gradient.values[rows, latents]
    return gradient.values.flatten()[codes.values.flatten() != 0]
