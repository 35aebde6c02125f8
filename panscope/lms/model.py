"""A language model whose activations can be read and replaced at sites, many at once, in one forward pass.

What is read is the model's own tensor, bit for bit, and writing it back changes nothing. A pass that need not reach
the logits ends as soon as everything asked for has been read, so later blocks cost nothing.

Shape letters: N sequences, T tokens a sequence, D width of a site, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import transformers
import xxhash
from torch import Tensor, nn

from panscope.lms.families import family_of
from panscope.lms.hooks import PassDone, Tap, run_with
from panscope.lms.norms import NormWithoutGain
from panscope.lms.sites import KINDS
from panscope.lms.tokenizer import HfTokenizer
from panscope.types import Site, UserError

Change = Callable[[Tensor], Tensor]
_SAMPLE = 256
"""Numbers of each tensor that a hash of the weights looks at."""


@dataclass(frozen=True)
class Reading:
    """What one pass gave."""

    activations: dict[Site, Tensor]
    """[N, T, D] for every site that was to be read, in the order asked."""
    logits: Tensor | None
    """[N, T, V], or None where they were not asked for."""


class LanguageModel:
    """A Hugging Face causal language model in `eval` mode, frozen, with its tokenizer and its sites.

    One pass at a time: two threads must not call `run` of one model at once. Raises UserError for an unknown family.
    """

    def __init__(
        self, model: "transformers.PreTrainedModel", tokenizer: "transformers.PreTrainedTokenizerBase"
    ) -> None:
        self.family = family_of(model.config.model_type)
        config = model.config.get_text_config()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = HfTokenizer(tokenizer, config)
        self.d_model: int = config.hidden_size
        self.vocabulary: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        """The longest sequence the model has positions for."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._heads_width: int = config.num_attention_heads * head_dim
        self._blocks = list(model.get_submodule(self.family.blocks).children())

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return len(self._blocks)

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

    def width(self, site: Site) -> int:
        """D of `site`; raises UserError if the model has no such layer."""
        self._block(site)
        return self._heads_width if KINDS[site.kind].heads_wide else self.d_model

    def weights_hash(self) -> str:
        """16 hex digits that tell models with other weights apart: from a few numbers of every tensor, in bfloat16."""
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
    ) -> Reading:
        """Read the sites of `read`, with the sites of `splice` replaced, in one pass; logits if asked for.

        `token_ids` [N, T] int64 and `attention_mask` [N, T] bool (False on padding, which is on the right) may be on
        any device. `splice[site]` gets a copy of the tensor [N, T, D] at that site of this very pass and returns what
        takes its place: same shape, rounded to the model's dtype. A site that is both read and spliced is read before
        the splice; every site sees the splices that come before it in the model. Without `logits` the pass ends with
        the last site of `read`: nothing after it runs, later splices included, and with no site at all nothing runs.
        Raises UserError if a layer does not exist, if T exceeds the context, or if a splice changes the shape.
        """
        assert token_ids.shape == attention_mask.shape, f"{token_ids.shape} tokens, {attention_mask.shape} mask"
        if token_ids.shape[1] > self.context:
            raise UserError(
                f"token_ids has {token_ids.shape[1]} tokens a sequence, but the model's context is {self.context}: "
                "cut the text into shorter sequences"
            )
        watch = _Pass(frozenset(read), dict(splice or {}), to_the_end=logits)
        taps = [self._tap(site, watch) for site in watch.sites]
        if not (read or logits):
            return Reading({}, None)
        output = run_with(taps, lambda: self._forward(token_ids, attention_mask))
        return Reading({site: watch.seen[site] for site in read}, output)

    def _forward(self, token_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[N, T, V] the logits."""
        mask = attention_mask.to(self.device, torch.bool)
        return self.model(input_ids=token_ids.to(self.device), attention_mask=mask, use_cache=False).logits

    def _tap(self, site: Site, watch: "_Pass") -> Tap:
        kind = KINDS[site.kind]
        module = self._block(site).get_submodule(kind.module(self.family))
        if not kind.no_gain:
            return Tap(module, kind.end, lambda _, value: watch.visit(site, value))
        norm = NormWithoutGain(module, self.family.gain_offset)

        def visit(x: Tensor, y: Tensor) -> Tensor:
            read = norm.read(x)
            written = watch.visit(site, read)
            return y if written is read else norm.write(written, read, y)

        return Tap(module, kind.end, visit)

    def _block(self, site: Site) -> nn.Module:
        if site.layer >= self.n_layers:
            raise UserError(
                f"layer {site.layer} of site {str(site)!r} does not exist: "
                f"this model has {self.n_layers} layers, so choose from 0 to {self.n_layers - 1}"
            )
        return self._blocks[site.layer]


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
