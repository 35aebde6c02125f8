"""Resolves sites to the modules of a Hugging Face model: their widths, and taps that read and replace activations.

`LanguageModel` uses it for its own forward passes; `tapped` keeps taps attached during any number of forward passes
that other code runs, such as those of `generate`.

Shape letters: N sequences, T tokens per sequence, D width of a site.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from panscope.lms.families import family_of
from panscope.lms.hf_versions import cache_in_arguments, cache_in_output
from panscope.lms.hooks import Tap, after_each_call, attached, before_each_call
from panscope.lms.norms import NormWithoutGain
from panscope.site_kinds import KINDS
from panscope.types import Site, UserError

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PassStart:
    """The batch size and cache with which a forward pass starts."""

    sequences: int
    """N."""
    cache: Any
    """The key-value cache of earlier tokens; None if there is none."""
    past: int
    """Number of tokens in the cache."""


class SiteResolver:
    """The sites of one model, which is not modified; raises UserError for a family that is not supported."""

    def __init__(self, model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        if not hasattr(config, "get_text_config"):
            raise UserError(f"the model is a {type(model).__name__}: give a Hugging Face causal language model")
        self.model = model
        self.family = family_of(config.model_type)
        text = config.get_text_config()
        self.d_model: int = text.hidden_size
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._heads_width: int = text.num_attention_heads * head_dim
        try:
            self.blocks = list(model.get_submodule(self.family.blocks).children())
            self._body = model.get_submodule(self.family.blocks.rpartition(".")[0])
        except AttributeError:
            raise UserError(
                f"the model {type(model).__name__} has no {self.family.blocks!r}: give the causal language model "
                "itself, not a part of it or a wrapper"
            ) from None

    def width(self, site: Site) -> int:
        """D of `site`; raises UserError if the model has no such layer."""
        self.block(site)
        return self._heads_width if KINDS[site.kind].heads_wide else self.d_model

    def block(self, site: Site) -> nn.Module:
        """The block of a site; raises UserError if the model has no such layer."""
        if site.layer >= len(self.blocks):
            raise UserError(
                f"layer {site.layer} of site {str(site)!r} does not exist: "
                f"this model has {len(self.blocks)} layers, so choose from 0 to {len(self.blocks) - 1}"
            )
        return self.blocks[site.layer]

    def tap(self, site: Site, visit: Change) -> Tap:
        """A tap that calls `visit` with the tensor [N, T, D] at the site and puts the tensor it returns in its place;
        returning the same tensor changes nothing."""
        kind = KINDS[site.kind]
        module = self.block(site).get_submodule(kind.module(self.family))
        if not kind.no_gain:
            return Tap(module, kind.end, lambda _, value: visit(value))
        norm = NormWithoutGain(module, self.family.gain_offset)

        def visit_without_gain(x: Tensor, y: Tensor) -> Tensor:
            read = norm.read(x, y)
            written = visit(read)
            return y if written is read else norm.write(written, read, y)

        return Tap(module, kind.end, visit_without_gain)

    @contextlib.contextmanager
    def tapped(
        self, visits: Mapping[Site, Change], begin: Callable[[PassStart], None], end: Callable[[Any], None]
    ) -> Iterator[None]:
        """A context in which every forward pass of the model, by any caller, calls `visits` at their sites (see `tap`).

        `begin` is called before each pass, and `end` after it with the cache that it returns, or None. A pass is a call
        of the module that contains the blocks, so calling that module without the head counts too. Compiled code does
        not run hooks that were registered after its compilation, and `generate` compiles on some devices, so nothing
        compiled runs in this context.
        """
        taps = [self.tap(site, visit) for site, visit in visits.items()]
        with (
            torch.compiler.set_stance("force_eager"),
            before_each_call(self._body, lambda args, kwargs: begin(self._pass_start(args, kwargs))),
            after_each_call(self._body, lambda output: end(cache_in_output(output))),
            attached(taps),
        ):
            yield

    def _pass_start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PassStart:
        """The start of the pass that calls the body with these arguments."""
        if args:
            kwargs = kwargs | inspect.signature(self._body.forward).bind_partial(*args).arguments
        cache, ids = cache_in_arguments(kwargs), kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if ids is None else ids
        return PassStart(len(tokens), cache, 0 if cache is None else int(cache.get_seq_length()))
