"""A language model of two blocks in float64, a text of a few sequences, and coders for it, to test evaluation on.

Shape letters: N sequences, T tokens a sequence, D width, V vocabulary, F latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from panscope import coders
from panscope.coders.normaliser import Normaliser
from panscope.coders.wiring import UNIT, WiredCoder, Wiring
from panscope.evals.accumulator import Result
from panscope.evals.evaluate import evaluate
from panscope.evals.spec import EvalSpec
from panscope.lms.model import Start
from panscope.types import Latents, Site, TokenBatch

BOS, EOS, PAD, V, D, F = 0, 1, 2, 11, 4, 10
LAYERS = 2
CONTEXT = 9
RESID0, RESID1 = Site(0, "resid_post"), Site(1, "resid_post")
MLP_IN, MLP_OUT = Site(1, "mlp_in"), Site(1, "mlp_out")
SEQUENCES = [
    [BOS, 5, 6, 7, EOS, BOS, 8],
    [BOS, 9, 10, 3, 4, 5, 6],
    [BOS, 4, PAD, PAD, PAD, PAD, PAD],
    [7, 3, EOS, 6, 6, 9, PAD],
    [BOS, 10, 8, 3, 9, EOS, PAD],
]
"""4, 6, 1, 5 and 4 content tokens."""
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FakeReading:
    activations: dict[Site, Tensor]
    logits: Tensor | None


class FakeLM:
    """Two blocks that average the past, pass it through an MLP and add it to the residual stream; all float64."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(1)
        self.embedding = torch.randn(V, D, generator=g, dtype=torch.float64)
        self.mlps = torch.randn(LAYERS, D, D, generator=g, dtype=torch.float64)
        self.head = torch.randn(D, V, generator=g, dtype=torch.float64)
        self.splices: list[tuple[Site, Tensor, Tensor]] = []
        """Every change made: where, what was there, what was put there."""
        self.passes: list[tuple[int | None, int]] = []
        """Every pass: the layer that it began at, None at the text, and how many sequences it had."""
        self.backward_passes = 0

    def run(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        *,
        read: Sequence[Site] = (),
        splice: Mapping[Site, Change] | None = None,
        logits: bool = False,
        start: Start | None = None,
    ) -> FakeReading:
        self.passes.append((None if start is None else start.layer, len(token_ids)))
        seen: dict[Site, Tensor] = {}

        def visit(site: Site, value: Tensor) -> Tensor:
            if site in read:
                seen[site] = value
            if start is not None and site in start.known_outputs:
                if not torch.equal(value, start.known_outputs[site]):
                    self.splices.append((site, value, start.known_outputs[site]))
                return start.known_outputs[site]
            if not splice or site not in splice:
                return value
            after = splice[site](value.clone())
            self.splices.append((site, value, after))
            return after

        made = self._logits(token_ids, visit, start)
        return FakeReading(seen, made if logits else None)

    def gradients(
        self, token_ids: Tensor, attention_mask: Tensor, sites: Sequence[Site], objective: Change
    ) -> dict[Site, Tensor]:
        self.backward_passes += 1
        seen: dict[Site, Tensor] = {}

        def visit(site: Site, value: Tensor) -> Tensor:
            if site in sites:
                seen[site] = value = value if value.requires_grad else value.clone().requires_grad_()
            return value

        with torch.enable_grad():
            number = objective(self._logits(token_ids, visit, None))
            return dict(zip(seen, torch.autograd.grad(number, list(seen.values())), strict=True))

    def _logits(self, token_ids: Tensor, visit: Callable[[Site, Tensor], Tensor], start: Start | None) -> Tensor:
        """[N, T, V]."""
        x, first = self.embedding[token_ids], 0
        if start is not None and start.layer:
            assert start.residual is not None
            x, first = start.residual, start.layer
        steps = torch.arange(1, x.shape[1] + 1, dtype=torch.float64)[:, None]
        for layer in range(first, LAYERS):
            x = x + visit(Site(layer, "attn_out"), torch.zeros_like(x))
            mlp_in = visit(Site(layer, "mlp_in"), x.cumsum(dim=1) / steps)
            mlp_out = visit(Site(layer, "mlp_out"), torch.tanh(mlp_in @ self.mlps[layer]))
            x = visit(Site(layer, "resid_post"), x + mlp_out)
        return x @ self.head


def documents_of(sequences: list[list[int]], first: int = 0) -> list[list[int]]:
    """The document of each token: the n-th sequence begins with document 2 n, and 2 n + 1 comes after an EOS."""
    return [
        [-1 if token == PAD else 2 * (first + n) + (EOS in ids[:t]) for t, token in enumerate(ids)]
        for n, ids in enumerate(sequences)
    ]


def a_batch(sequences: list[list[int]], first: int = 0) -> TokenBatch:
    """Sequences as one batch; `first` is the number of its first sequence in the text."""
    ids = torch.tensor(sequences)
    content = (ids != BOS) & (ids != EOS) & (ids != PAD)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    return TokenBatch(ids, ids != PAD, content, torch.tensor(documents_of(sequences, first)), positions)


def in_batches(sequences: list[list[int]], size: int) -> list[TokenBatch]:
    """A text in batches of `size` sequences."""
    return [a_batch(sequences[first : first + size], first) for first in range(0, len(sequences), size)]


def all_text() -> list[TokenBatch]:
    return [a_batch(SEQUENCES)]


def measure(
    many: Mapping[str, WiredCoder], text: list[TokenBatch] | None = None, lm: FakeLM | None = None, **question: Any
) -> dict[str, Result]:
    """Evaluate coders of the fake model on a text, SEQUENCES unless given."""
    text = all_text() if text is None else text
    lm = FakeLM() if lm is None else lm
    return evaluate(lm, lambda: text, many, context=CONTEXT, spec=EvalSpec(**question))


def a_coder(reads: Site, predicts: Site, architecture: str = "relu", **fields: Any) -> WiredCoder:
    """A random float64 coder with two latents that never fire."""
    return wired(built(architecture, D, **fields), reads, predicts)


def built(architecture: str, d: int, **fields: Any) -> Any:
    """A random float64 coder with two latents that never fire, and biases."""
    made = {"d_in": d, "d_out": d, "width": F, "sparsity": 3} | fields
    coder: Any = coders.build(coders.config_type(architecture).read(made, "test"))
    coder.initialise(torch.Generator().manual_seed(2)).double()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        coder.b_enc[:2] = -100.0
        coder.b_dec += torch.randn(d, generator=g)
        if made.get("skip"):
            coder.W_skip += torch.randn(d, d, generator=g)
    return coder


def wired(coder: Any, reads: Site, predicts: Site) -> WiredCoder:
    kind = "sae" if reads == predicts else "transcoder"
    return WiredCoder(Wiring(wiring=kind, reads=(reads,), predicts=(predicts,)), coder)


def over(wiring: str, sites: list[Site], coder: Any, normaliser: Normaliser = UNIT) -> WiredCoder:
    """A coder that reads what it predicts, at one site or more."""
    return WiredCoder(Wiring.read({"wiring": wiring, "reads": sites, "predicts": sites}, "test"), coder, normaliser)


@dataclass(frozen=True)
class _Width:
    width: int


class Constant:
    """Stands in for a coder: predicts the same row always."""

    def __init__(self, row: Tensor, width: int = 1) -> None:
        self.W_enc = row
        self.W_dec = row.new_zeros(width, len(row))
        self.b_dec = row
        self.config = _Width(width)

    def encode(self, x: Tensor) -> Latents:
        return Latents(x.new_zeros(len(x), self.config.width), self.config.width)

    def base(self, x: Tensor) -> Tensor:
        return self.b_dec


class Identity(Constant):
    """Stands in for a perfect coder: the positive and the negative parts are its codes."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(D, dtype=torch.float64), 2 * D)
        one = torch.eye(D, dtype=torch.float64)
        self.W_dec = torch.cat([one, -one])

    def encode(self, x: Tensor) -> Latents:
        return Latents(torch.cat([x.clamp(min=0), (-x).clamp(min=0)], dim=1), 2 * D)


def identity(site: Site) -> WiredCoder:
    return wired(Identity(), site, site)
