"""Every number, table and interval of an evaluation against the float64 oracle, which shares no code with it.

Shape letters: D width, V vocabulary, F latents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tests.support.definitions as defined
from panscope import coders
from panscope.coders.wiring import WiredCoder
from panscope.evals import firing
from panscope.evals.accumulator import Result
from panscope.evals.evaluate import evaluate
from panscope.evals.spec import EvalSpec
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.types import Site, TokenBatch
from tests.support.averaging_lm import (
    BOS,
    EOS,
    LAYERS,
    MLP_IN,
    MLP_OUT,
    PAD,
    RESID0,
    RESID1,
    SEQUENCES,
    D,
    FakeLM,
    a_coder,
    documents_of,
    in_batches,
    measure,
    wired,
)  # fmt: skip

LONGER = [
    *SEQUENCES,
    [BOS, EOS, PAD, PAD, PAD, PAD, PAD],
    [BOS, 5, 5, EOS, BOS, 9, 3],
    [3, 4, 6, 8, 10, 7, 5],
]
"""31 content tokens, in seven of eight sequences; no frequency but 1 lies on an edge of the histogram."""
TEXT = defined.Text(LONGER, documents_of(LONGER), frozenset({BOS, EOS, PAD}), PAD)
WINDOWS = (1, 5, 31, 32)
SUBSETS = ("first", "never", "second")
TOLERANCE = 1e-6


def subset_of(document: int) -> int:
    """Documents in turn, and none of the one in the middle."""
    return (0, 2)[document % 3 % 2]


def forward(ids: list[int], put: Any) -> tuple[dict[defined.Place, np.ndarray], np.ndarray]:
    """The fake model, one token at a time."""
    lm = FakeLM()
    embedding, mlps, head = lm.embedding.numpy(), lm.mlps.numpy(), lm.head.numpy()
    stream = [embedding[token] for token in ids]
    seen: dict[defined.Place, np.ndarray] = {}

    def visit(site: Site, t: int, value: np.ndarray) -> np.ndarray:
        seen[site, t] = value
        return put.get((site, t), value)

    for layer in range(LAYERS):
        new = []
        for t in range(len(ids)):
            average = visit(Site(layer, "mlp_in"), t, sum(stream[: t + 1], np.zeros(D)) / (t + 1))
            out = visit(Site(layer, "mlp_out"), t, np.tanh(average @ mlps[layer]))
            new.append(visit(Site(layer, "resid_post"), t, stream[t] + out))
        stream = new
    return seen, np.array([x @ head for x in stream])


def row_of_relu(coder: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    w = {name: tensor.numpy() for name, tensor in coder.tensors().items()}

    def row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = np.maximum(w["W_enc"] @ x + w["b_enc"], 0)
        return codes, codes @ w["W_dec"] + w["b_dec"]

    return row


def row_of_topk(coder: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    w, relu = {name: tensor.numpy() for name, tensor in coder.tensors().items()}, row_of_relu(coder)

    def row(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, _ = relu(x)
        codes[np.argsort(-codes)[int(coder.config.sparsity) :]] = 0
        return codes, codes @ w["W_dec"] + w["b_dec"]

    return row


@dataclass(frozen=True)
class Case:
    """One evaluation by both."""

    reads: Site = RESID0
    predicts: Site = RESID0
    architecture: str = "relu"
    splice: str = "content"
    loss_mask: str = "target"
    subsets: tuple[str, ...] = SUBSETS
    probes: int = 6
    batch: int = 3
    interventions_per_pass: int = 1

    def coder(self) -> WiredCoder:
        own = {} if self.reads == self.predicts else {"encoder_init": "own"}
        return a_coder(self.reads, self.predicts, self.architecture, **own)

    def expected(self) -> tuple[defined.Group, defined.Asked]:
        coder: Any = self.coder().coder
        row = (row_of_topk if self.architecture == "topk" else row_of_relu)(coder)
        coded = defined.Coded(self.reads, self.predicts, row, coder.tensors()["W_dec"].numpy())
        one = self.subsets == ("",)
        asked = defined.Asked(
            self.splice, self.loss_mask, self.probes, self.subsets, (lambda _: 0) if one else subset_of, WINDOWS
        )
        return defined.measured(forward, TEXT, coded, asked), asked

    def found(self) -> Result:
        question: dict[str, Any] = {"subsets": self.subsets, "subset_of": subset_of} if self.subsets[1:] else {}
        text = in_batches(LONGER, self.batch)
        return measure(
            {"c": self.coder()},
            text,
            splice=self.splice,
            loss_mask=self.loss_mask,
            probes=self.probes,
            interventions_per_pass=self.interventions_per_pass,
            **question,
        )["c"]


CASES = {
    "an SAE": Case(),
    "TopK, one subset, one batch": Case(RESID1, RESID1, "topk", subsets=("",), batch=8),
    "a transcoder, passes together": Case(MLP_IN, MLP_OUT, interventions_per_pass=8, batch=1),
    "special tokens replaced": Case(
        MLP_OUT, MLP_OUT, "topk", splice="all", loss_mask="input", interventions_per_pass=2
    ),
    "judged where they are read, no probes": Case(loss_mask="input", probes=0, batch=2),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr(firing, "WINDOWS", WINDOWS)
    return request.param


def rows_of(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_every_number_and_table_is_its_definition(case: Case):
    group, asked = case.expected()
    result = case.found()
    assert not defined.differences(result.fields, defined.fields_of(group, asked), TOLERANCE)
    positions = defined.positions_of(group, case.predicts)
    assert not defined.differences(rows_of(result.tables["positions"]), positions, TOLERANCE)
    latents = [
        {name: latent[name] for name in ("firings", "sequences", "frequency", "mean", "max")}
        for latent in defined.latents_of(group.rows)
    ]
    assert not defined.differences(rows_of(result.tables["latents"]), latents, TOLERANCE)


def double_forward(lm: LanguageModel, site: Site) -> defined.Forward:
    """One sequence through a trained model in float64, in whole passes."""

    def run(ids: list[int], put: Any) -> tuple[dict[defined.Place, np.ndarray], np.ndarray]:
        def splice(x: Tensor) -> Tensor:
            for (_, t), row in put.items():
                x[0, t] = torch.from_numpy(row)
            return x

        tokens = torch.tensor([ids])
        reading = lm.run(tokens, torch.ones_like(tokens).bool(), read=[site], splice={site: splice}, logits=True)
        assert reading.logits is not None
        rows = reading.activations[site][0].numpy()
        return {(site, t): rows[t] for t in range(len(ids))}, reading.logits[0].numpy()

    return run


def row_of_half(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `a_half_coder` does."""
    codes = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)])
    return codes, 0.5 * x


def a_half_coder(d: int, site: Site) -> WiredCoder:
    """Latents for the positive and the negative part of every dimension, decoded to half of what was there."""
    config = coders.config_type("relu").read({"d_in": d, "d_out": d, "width": 2 * d, "sparsity": 1}, "test")
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    weights = {"W_enc": both, "W_dec": 0.5 * both, "b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d)}
    return wired(coders.build(config).load_tensors(weights), site, site)


def test_a_trained_model(shared: Path):
    """In float32 against float64: logits of about 10 are good to 1e-6 each.

    Norms of transformers are in float32 in any model, which leaves noise of 1e-7 in what the oracle divides by its
    steps of 3e-3, and the interval of two probes widens it; wider steps would not be small any more.
    """
    folder = str(shared / "models" / "stories260K")
    lm, double = (load(LanguageModelConfig(path=folder, device="cpu")) for _ in range(2))
    double.model.double()
    bos = lm.tokenizer.bos_id
    assert bos is not None
    encoded = [[bos, *ids] for ids in lm.tokenizer.encode(["Tom had a red ball.", "The sun was warm. Lily sat.", "A"])]
    padding = -1
    longest = max(map(len, encoded))
    padded = [ids + [padding] * (longest - len(ids)) for ids in encoded]
    text = defined.Text(padded, [[n] * longest for n in range(len(padded))], frozenset({bos, padding}), padding)
    site, asked = Site(2, "mlp_out"), defined.Asked(probes=2, step=3e-3)
    W_dec = 0.5 * np.concatenate([np.eye(64), -np.eye(64)])
    group = defined.measured(double_forward(double, site), text, defined.Coded(site, site, row_of_half, W_dec), asked)
    ids = torch.tensor(padded)
    mask = ids != padding
    documents, places = torch.arange(len(ids))[:, None].expand_as(ids), torch.arange(longest).expand_as(ids)
    batch = TokenBatch(ids.clamp(min=0), mask, mask & (ids != bos), documents, places)
    found = evaluate(
        lm,
        lambda: [batch],
        {"c": a_half_coder(64, site)},
        context=longest,
        spec=EvalSpec(probes=2, interventions_per_pass=3),
    )["c"]
    expected, fields = defined.fields_of(group, asked), found.fields
    for numbers, tolerance in ((expected, 1e-4), (expected["intervals"], 1e-3)):
        actual = fields if numbers is expected else fields["intervals"]
        assert not defined.differences(actual.pop("uniformity"), numbers.pop("uniformity"), tolerance)
    assert not defined.differences(fields, expected, 2e-5)
