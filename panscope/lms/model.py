"""A language model whose activations can be read and replaced at sites, many at once, in one forward pass.

Activations are read bit for bit, and writing one back unchanged leaves the model's output unchanged. A pass that does
not compute logits ends at the last site to read, so later blocks cost nothing.

Shape letters: N sequences, T tokens per sequence, D width of a site, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from panscope.lms.families import ModelFamily
from panscope.lms.hooks import PassDone, after_each_call, run_with, stubbed
from panscope.lms.identity import ModelIdentity, checksum_of_files, checksum_of_tensors, configuration_of
from panscope.lms.site_resolver import Change, SiteResolver
from panscope.lms.tokenizer import HfTokenizer
from panscope.site_kinds import KINDS
from panscope.types import Site, UserError


@dataclass(frozen=True)
class Reading:
    """The activations and logits of one forward pass."""

    activations: dict[Site, Tensor]
    """[N, T, D] for every site of `read`, in that order."""
    logits: Tensor | None
    """[N, T, V], or None if not requested."""


@dataclass(frozen=True)
class Start:
    """Known activations from which a forward pass starts, so that earlier modules need not run."""

    layer: int
    residual: Tensor | None
    """[N, T, D] output of the block before `layer`, its `resid_post`; None if the layer is 0."""
    known_outputs: Mapping[Site, Tensor] = field(default_factory=dict)
    """[N, T, D] at `attn_out` and `mlp_out` sites of blocks from `layer` on: that attention or MLP is not run, and the
    tensor is used as its output."""


class LanguageModel:
    """A Hugging Face causal language model in `eval` mode, frozen, with its tokenizer and its sites.

    Not thread-safe: run one pass at a time. Raises UserError for a family that is not supported.
    """

    def __init__(
        self,
        model: "transformers.PreTrainedModel",
        tokenizer: "transformers.PreTrainedTokenizerBase",
        weight_files: Sequence[Path] = (),
    ) -> None:
        """`weight_files` are those that the weights were read from; without any, their identity is that in memory."""
        self.site_resolver = SiteResolver(model)
        self.family = self.site_resolver.family
        config = model.config.get_text_config()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = HfTokenizer(tokenizer, config)
        self.d_model = self.site_resolver.d_model
        self.vocabulary: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        """Maximum sequence length in tokens."""
        self._blocks = self.site_resolver.blocks
        self._weight_files = tuple(weight_files)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @cached_property
    def closing_ids(self) -> frozenset[int]:
        """Every token that ends a response: the tokenizer's, and those of the model's generation config."""
        eos = getattr(self.model.generation_config, "eos_token_id", None)
        eos_ids = eos if isinstance(eos, list) else [eos]
        return self.tokenizer.closing_ids | {token for token in eos_ids if token is not None}

    @property
    def attention(self) -> str:
        """The attention implementation, as transformers names it."""
        return str(self.model.config._attn_implementation)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters and activations."""
        return self.model.dtype

    def tokens(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [N, T] int64 of texts and their mask [N, T] bool (False on padding, on the right), on the device.

        Tokenised like documents in training and evaluation with `packing = "documents"`: BOS first if the model has
        one, truncated to the context. Coders are not trained on BOS. Raises UserError for a text without tokens.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        encoded = self.tokenizer.encode(texts)
        for text, ids in zip(texts, encoded, strict=True):
            if not ids:
                raise UserError(f"the text {text!r} has no tokens for this model: give a text that is not empty")
        rows = [torch.tensor([*bos, *ids][: self.context]) for ids in encoded]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return padded.to(self.device), mask.to(self.device)

    def width(self, site: Site) -> int:
        """D of `site`; raises UserError if the model has no such layer."""
        return self.site_resolver.width(site)

    @cached_property
    def identity(self) -> ModelIdentity:
        """What the model computes: checksums of weights and tokenizer, and the configuration.

        Computed once, as the weights are frozen; every weight is read unless its file's checksum is cached.
        """
        files = self._weight_files
        return ModelIdentity(
            weights=checksum_of_files(files) if files else checksum_of_tensors(self.model.state_dict()),
            configuration=configuration_of(self.model.config),
            tokenizer=self.tokenizer.checksum(),
            transformers=transformers.__version__,
        )

    @torch.no_grad()
    def run(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        *,
        read: Sequence[Site] = (),
        splice: Mapping[Site, Change] | None = None,
        logits: bool = False,
        start: Start | None = None,
    ) -> Reading:
        """Read the sites of `read`, and compute logits if requested, in one forward pass with `splice` applied.

        `token_ids` [N, T] int64 and `attention_mask` [N, T] bool (False on padding, which is on the right) may be on
        any device. `splice[site]` is called with a copy of the tensor [N, T, D] at that site of this pass and returns
        its replacement: same shape, rounded to the model's dtype. A site that is both read and spliced is read before
        the splice; every site is affected by the splices before it in the model. Without `logits` the pass ends at
        the last site of `read`: later splices do not run, and without any site nothing runs. With `start`, blocks
        before it do not run, and their sites may not be read or spliced.
        Raises UserError if a layer does not exist, if T exceeds the context, or if a splice changes the shape.
        """
        assert token_ids.shape == attention_mask.shape, f"{token_ids.shape} tokens, {attention_mask.shape} mask"
        if token_ids.shape[1] > self.context:
            raise UserError(
                f"token_ids has {token_ids.shape[1]} tokens a sequence, but the model's context is {self.context}: "
                "cut the text into shorter sequences"
            )
        pass_ = _Pass(frozenset(read), dict(splice or {}), needs_logits=logits)
        taps = [self.site_resolver.tap(site, lambda value, site=site: pass_.visit(site, value)) for site in pass_.sites]
        if not (read or logits):
            return Reading({}, None)
        with self._starting_from(start, pass_.sites):
            output = run_with(taps, lambda: self._forward(token_ids, attention_mask))
        return Reading({site: pass_.activations[site] for site in read}, output)

    def gradients(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        sites: Sequence[Site],
        objective: Callable[[Tensor], Tensor],
    ) -> dict[Site, Tensor]:
        """[N, T, D] per site: the gradient of objective(logits [N, T, V]), a scalar, with respect to that site.

        Each is the total derivative: it includes the paths through later sites. Not for sites before a norm's gain,
        whose tensors are not part of the model's own computation.
        """
        assert not any(KINDS[site.kind].no_gain for site in sites), "a site before the gain has no gradient"
        seen: dict[Site, Tensor] = {}

        def visit(site: Site, value: Tensor) -> Tensor:
            seen[site] = value if value.requires_grad else value.detach().requires_grad_()
            return seen[site]

        taps = [self.site_resolver.tap(site, lambda value, site=site: visit(site, value)) for site in sites]
        with torch.enable_grad():
            logits = run_with(taps, lambda: self._forward(token_ids, attention_mask))
            assert logits is not None
            return dict(zip(seen, torch.autograd.grad(objective(logits), list(seen.values())), strict=True))

    @contextlib.contextmanager
    def _starting_from(self, start: Start | None, sites: Sequence[Site]) -> Iterator[None]:
        """A context in which modules whose outputs are in `start` return them and do not run."""
        if start is None:
            yield
            return
        early = [site for site in sites if site.layer < start.layer]
        assert not early, f"{early} come before block {start.layer}, which the pass starts with"
        skipped = [site for site in sites for known in start.known_outputs if _is_in_part_of(site, known)]
        assert not skipped, f"{skipped} are in modules that do not run because their output is known"
        with contextlib.ExitStack() as stack:
            if start.layer:
                assert start.residual is not None
                stack.enter_context(stubbed(self._blocks[: start.layer], self._as_output("", start.residual)))
            for site, tensor in start.known_outputs.items():
                for path in _modules_before(site, self.family):
                    module = self.site_resolver.block(site).get_submodule(path)
                    stack.enter_context(stubbed([module], self._as_output(path, tensor)))
            yield

    def _as_output(self, path: str, tensor: Tensor) -> Any:
        """The tensor in the output format of the module at `path` of a block: alone, or first in a tuple whose other
        elements are not used."""
        length = self._output_lengths[path]
        return tensor if length is None else (tensor, *[None] * (length - 1))

    @cached_property
    def _output_lengths(self) -> dict[str, int | None]:
        """Length of each module's output tuple, None if it returns a tensor; this differs between transformers
        releases, so it is found by running one token."""
        found: dict[str, int | None] = {}

        def note(path: str, output: Any) -> None:
            found[path] = len(output) if isinstance(output, tuple) else None

        paths = {
            "",
            *(path for kind in ("attn_out", "mlp_out") for path in _modules_before(Site(0, kind), self.family)),
        }
        with contextlib.ExitStack() as stack:
            for path in paths:
                module = self._blocks[0].get_submodule(path)
                stack.enter_context(after_each_call(module, lambda output, path=path: note(path, output)))
            self._forward(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
        return found

    def _forward(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [N, T, V]."""
        mask = attention_mask.to(self.device, torch.bool)
        return self.model(input_ids=token_ids.to(self.device), attention_mask=mask, use_cache=False).logits


def _modules_before(site: Site, family: ModelFamily) -> tuple[str, ...]:
    """The modules that need not run if the tensor at `site` is known: attention or MLP, and the norm after it."""
    if site.kind == "attn_out":
        attention = family.w_o.rpartition(".")[0]
        return (attention,) if family.attn_end == family.w_o else (attention, family.attn_end)
    assert site.kind == "mlp_out", f"{site} is not the output of attention or an MLP"
    return (family.mlp,) if family.mlp_end == family.mlp else (family.mlp, family.mlp_end)


def _is_in_part_of(site: Site, output: Site) -> bool:
    """Whether `site` is in the same attention or MLP as the site `output`."""
    return site.layer == output.layer and KINDS[site.kind].part == KINDS[output.kind].part


class _Pass:
    """The reads and splices of one forward pass."""

    def __init__(self, read: frozenset[Site], splice: dict[Site, Change], needs_logits: bool) -> None:
        self.activations: dict[Site, Tensor] = {}
        self._read = read
        self._splice = splice
        self._needs_logits = needs_logits

    @property
    def sites(self) -> list[Site]:
        return sorted(self._read | self._splice.keys())

    def visit(self, site: Site, value: Tensor) -> Tensor:
        """The tensor with which the model continues: `value` itself, or the splice's replacement.

        Raises PassDone when the last site is read and no logits are needed.
        """
        if site in self._read:
            self.activations[site] = value
            if not self._needs_logits and len(self.activations) == len(self._read):
                raise PassDone
        if site not in self._splice:
            return value
        replacement = self._splice[site](value.clone())
        if replacement.shape != value.shape:
            raise UserError(
                f"the splice at {str(site)!r} returned the shape {tuple(replacement.shape)}: "
                f"return a tensor of the shape {tuple(value.shape)}, that of its argument"
            )
        return replacement.to(value.dtype)
