"""A language model whose activations can be read and replaced at sites, many at once, in one forward pass.

What is read is the model's own tensor, bit for bit, and writing it back changes nothing. A pass that need not reach
the logits ends as soon as everything asked for has been read, so later blocks cost nothing.

Shape letters: N sequences, T tokens a sequence, D width of a site, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import transformers
import xxhash
from torch import Tensor

from panscope.lms.families import ModelFamily
from panscope.lms.hooks import PassDone, giving, run_with, watching
from panscope.lms.site_resolver import Change, SiteResolver
from panscope.lms.tokenizer import HfTokenizer
from panscope.site_kinds import KINDS
from panscope.types import Site, UserError

_SAMPLE = 256
"""Numbers of each tensor that a hash of the weights looks at."""


@dataclass(frozen=True)
class Reading:
    """What one pass gave."""

    activations: dict[Site, Tensor]
    """[N, T, D] for every site that was to be read, in the order asked."""
    logits: Tensor | None
    """[N, T, V], or None where they were not asked for."""


@dataclass(frozen=True)
class Start:
    """Where a pass begins other than at the text: what comes before is known, and is not run."""

    layer: int
    residual: Tensor | None
    """[N, T, D] what the block before `layer` gave, its `resid_post`; None where the layer is 0."""
    given: Mapping[Site, Tensor] = field(default_factory=dict)
    """[N, T, D] at `attn_out` and `mlp_out` of blocks from `layer` on: attention or MLP is not run there, but gives
    that."""


class LanguageModel:
    """A Hugging Face causal language model in `eval` mode, frozen, with its tokenizer and its sites.

    One pass at a time: two threads must not call `run` of one model at once. Raises UserError for an unknown family.
    """

    def __init__(
        self, model: "transformers.PreTrainedModel", tokenizer: "transformers.PreTrainedTokenizerBase"
    ) -> None:
        self.site_resolver = SiteResolver(model)
        self.family = self.site_resolver.family
        config = model.config.get_text_config()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = HfTokenizer(tokenizer, config)
        self.d_model = self.site_resolver.d_model
        self.vocabulary: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        """The longest sequence the model has positions for."""
        self._blocks = self.site_resolver.blocks

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return len(self._blocks)

    @cached_property
    def closing_ids(self) -> frozenset[int]:
        """Every token after which the model has said what it had to say; a chat model may have one of its own."""
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        own = stated if isinstance(stated, list) else [stated]
        return self.tokenizer.closing_ids | {token for token in own if token is not None}

    @property
    def attention(self) -> str:
        """How attention is computed, as transformers names it."""
        return str(self.model.config._attn_implementation)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type, which is the activations' too."""
        return self.model.dtype

    def tokens(self, texts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [N, T] int64 of texts and their mask [N, T] bool (False on padding, on the right), on the device.

        As training and evaluation read a document (`packing = "documents"`): after BOS where the model has one, cut at
        its context. Coders are not trained on BOS. Raises UserError for a text without a token.
        """
        given = [texts] if isinstance(texts, str) else list(texts)
        opening = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        encoded = self.tokenizer.encode(given)
        for text, ids in zip(given, encoded, strict=True):
            if not ids:
                raise UserError(f"the text {text!r} has no token for this model: give one that has")
        rows = [torch.tensor([*opening, *ids][: self.context]) for ids in encoded]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        return padded.to(self.device), mask.to(self.device)

    def width(self, site: Site) -> int:
        """D of `site`; raises UserError if the model has no such layer."""
        return self.site_resolver.width(site)

    def weights_hash(self) -> str:
        """16 hex digits that tell models with other weights apart: from a few numbers of every tensor, in bfloat16.

        Computed once: the weights are frozen.
        """
        return self._weights_hash

    @cached_property
    def _weights_hash(self) -> str:
        digest = xxhash.xxh3_64()
        for name, tensor in sorted(self.model.state_dict().items()):
            some = tensor.flatten()[:_SAMPLE].to("cpu", torch.bfloat16)
            digest.update(f"{name}{list(tensor.shape)}".encode())
            digest.update(some.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

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
        """Read the sites of `read`, with the sites of `splice` replaced, in one pass; logits if asked for.

        `token_ids` [N, T] int64 and `attention_mask` [N, T] bool (False on padding, which is on the right) may be on
        any device. `splice[site]` gets a copy of the tensor [N, T, D] at that site of this very pass and returns what
        takes its place: same shape, rounded to the model's dtype. A site that is both read and spliced is read before
        the splice; every site sees the splices that come before it in the model. Without `logits` the pass ends with
        the last site of `read`: nothing after it runs, later splices included, and with no site at all nothing runs.
        With `start` no block before it is run, and no site of such a block may be read or spliced.
        Raises UserError if a layer does not exist, if T exceeds the context, or if a splice changes the shape.
        """
        assert token_ids.shape == attention_mask.shape, f"{token_ids.shape} tokens, {attention_mask.shape} mask"
        if token_ids.shape[1] > self.context:
            raise UserError(
                f"token_ids has {token_ids.shape[1]} tokens a sequence, but the model's context is {self.context}: "
                "cut the text into shorter sequences"
            )
        watch = _Pass(frozenset(read), dict(splice or {}), to_the_end=logits)
        taps = [self.site_resolver.tap(site, lambda value, site=site: watch.visit(site, value)) for site in watch.sites]
        if not (read or logits):
            return Reading({}, None)
        with self._begun_at(start, watch.sites):
            output = run_with(taps, lambda: self._forward(token_ids, attention_mask))
        return Reading({site: watch.seen[site] for site in read}, output)

    def gradients(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        sites: Sequence[Site],
        objective: Callable[[Tensor], Tensor],
    ) -> dict[Site, Tensor]:
        """[N, T, D] a site: the gradient of a number, objective(logits [N, T, V]), by what stands at that site.

        A site counts as if what stands there came from nowhere: through later sites too, not by earlier ones. Not for
        sites before a norm's gain, which are no part of the model's own way.
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
    def _begun_at(self, start: Start | None, sites: Sequence[Site]) -> Iterator[None]:
        """What is known gives what it gave."""
        if start is None:
            yield
            return
        early = [site for site in sites if site.layer < start.layer]
        assert not early, f"{early} come before the block {start.layer} that the pass begins with"
        hidden = [site for site in sites for given in start.given if _is_hidden(site, given)]
        assert not hidden, f"{hidden} are in what is not run, as its output is given"
        with contextlib.ExitStack() as stack:
            if start.layer:
                assert start.residual is not None
                stack.enter_context(giving(self._blocks[: start.layer], self._as_output("", start.residual)))
            for site, tensor in start.given.items():
                for path in _computing(site, self.family):
                    module = self.site_resolver.block(site).get_submodule(path)
                    stack.enter_context(giving([module], self._as_output(path, tensor)))
            yield

    def _as_output(self, path: str, tensor: Tensor) -> Any:
        """A tensor as the module at `path` of a block gives it: alone, or first in a tuple of which no more is read."""
        length = self._lengths[path]
        return tensor if length is None else (tensor, *[None] * (length - 1))

    @cached_property
    def _lengths(self) -> dict[str, int | None]:
        """How long the tuple is that a module of a block gives, None for no tuple; versions of transformers differ."""
        found: dict[str, int | None] = {}

        def note(path: str, output: Any) -> None:
            found[path] = len(output) if isinstance(output, tuple) else None

        paths = {"", *(path for kind in ("attn_out", "mlp_out") for path in _computing(Site(0, kind), self.family))}
        with contextlib.ExitStack() as stack:
            for path in paths:
                module = self._blocks[0].get_submodule(path)
                stack.enter_context(watching(module, lambda output, path=path: note(path, output)))
            self._forward(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
        return found

    def _forward(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[N, T, V] the logits."""
        mask = attention_mask.to(self.device, torch.bool)
        return self.model(input_ids=token_ids.to(self.device), attention_mask=mask, use_cache=False).logits


def _computing(site: Site, family: ModelFamily) -> tuple[str, ...]:
    """The modules that need not be run where the site's tensor is known: attention or MLP, and the norm after it."""
    if site.kind == "attn_out":
        attention = family.w_o.rpartition(".")[0]
        return (attention,) if family.attn_end == family.w_o else (attention, family.attn_end)
    assert site.kind == "mlp_out", f"{site} is not what attention or an MLP gives"
    return (family.mlp,) if family.mlp_end == family.mlp else (family.mlp, family.mlp_end)


def _is_hidden(site: Site, given: Site) -> bool:
    """Whether a site is inside of the attention or the MLP whose output is given."""
    return site.layer == given.layer and KINDS[site.kind].part == KINDS[given.kind].part


class _Pass:
    """What happens at each site during one pass: note what is to be read, put in what is spliced, stop when done."""

    def __init__(self, read: frozenset[Site], splice: dict[Site, Change], to_the_end: bool) -> None:
        self.seen: dict[Site, Tensor] = {}
        self._read = read
        self._splice = splice
        self._to_the_end = to_the_end

    @property
    def sites(self) -> list[Site]:
        return sorted(self._read | self._splice.keys())

    def visit(self, site: Site, value: Tensor) -> Tensor:
        """The tensor to go on with: `value` itself, or what the splice made of a copy of it."""
        if site in self._read:
            self.seen[site] = value
            if not self._to_the_end and len(self.seen) == len(self._read):
                raise PassDone
        if site not in self._splice:
            return value
        replacement = self._splice[site](value.clone())
        if replacement.shape != value.shape:
            raise UserError(
                f"the splice at {str(site)!r} returned the shape {tuple(replacement.shape)}: "
                f"return a tensor of the shape {tuple(value.shape)} that it was given"
            )
        return replacement.to(value.dtype)
