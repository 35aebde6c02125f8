"""The whole evaluation on a tiny language model, against one token at a time in numpy float64.

Shape letters: N sequences, T tokens a sequence, D width, V vocabulary, F latents.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panscope import coders
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.evals.run import EvalConfig, evaluate
from panscope.lms.model import Start
from panscope.types import Latents, NonFiniteError, Site, TokenBatch, UserError

BOS, EOS, PAD, V, D, F = 0, 1, 2, 11, 4, 10
LAYERS = 2
RESID0, RESID1 = Site(0, "resid_post"), Site(1, "resid_post")
MLP_IN, MLP_OUT = Site(1, "mlp_in"), Site(1, "mlp_out")
SEQUENCES = [
    [BOS, 5, 6, 7, EOS, BOS, 8],
    [BOS, 9, 10, 3, 4, 5, 6],
    [BOS, 4, PAD, PAD, PAD, PAD, PAD],
    [7, 3, EOS, 6, 6, 9, PAD],
    [BOS, 10, 8, 3, 9, EOS, PAD],
]


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
        self.passes = 0

    def run(
        self,
        token_ids: Tensor,
        attention_mask: Tensor,
        *,
        read: Sequence[Site] = (),
        splice: Mapping[Site, Callable[[Tensor], Tensor]] | None = None,
        logits: bool = False,
        start: Start | None = None,
    ) -> FakeReading:
        self.passes += 1
        start = start or Start(0, None)
        seen: dict[Site, Tensor] = {}

        def visit(site: Site, value: Tensor) -> Tensor:
            if site in read:
                seen[site] = value
            if site in start.given:
                if not torch.equal(value, start.given[site]):
                    self.splices.append((site, value, start.given[site]))
                return start.given[site]
            if not splice or site not in splice:
                return value
            after = splice[site](value.clone())
            self.splices.append((site, value, after))
            return after

        x = self.embedding[token_ids]
        if start.layer:
            assert start.residual is not None
            x = start.residual
        steps = torch.arange(1, x.shape[1] + 1, dtype=torch.float64)[:, None]
        for layer in range(start.layer, LAYERS):
            x = x + visit(Site(layer, "attn_out"), torch.zeros_like(x))
            mlp_in = visit(Site(layer, "mlp_in"), x.cumsum(dim=1) / steps)
            mlp_out = visit(Site(layer, "mlp_out"), torch.tanh(mlp_in @ self.mlps[layer]))
            x = visit(Site(layer, "resid_post"), x + mlp_out)
        return FakeReading(seen, x @ self.head if logits else None)


def brute_pass(lm: FakeLM, ids: list[int], replacement: dict[tuple[Site, int], np.ndarray]) -> tuple[dict, np.ndarray]:
    """One sequence, one token at a time: activations at (site, t), and log-probabilities [T, V]."""
    embedding, mlps, head = lm.embedding.numpy(), lm.mlps.numpy(), lm.head.numpy()
    stream = [embedding[token] for token in ids]
    seen: dict[tuple[Site, int], np.ndarray] = {}

    def visit(site: Site, t: int, value: np.ndarray) -> np.ndarray:
        seen[site, t] = value
        return replacement.get((site, t), value)

    for layer in range(LAYERS):
        new = []
        for t in range(len(ids)):
            average = visit(Site(layer, "mlp_in"), t, sum(stream[: t + 1], np.zeros(D)) / (t + 1))
            out = visit(Site(layer, "mlp_out"), t, np.tanh(average @ mlps[layer]))
            new.append(visit(Site(layer, "resid_post"), t, stream[t] + out))
        stream = new
    logits = [x @ head for x in stream]
    return seen, np.array([row - row.max() - math.log(np.exp(row - row.max()).sum()) for row in logits])


def is_content(token: int) -> bool:
    return token not in (BOS, EOS, PAD)


def brute_evaluation(lm: FakeLM, reads: Site, predicts: Site, function: Callable) -> dict[str, float | int]:
    """Every number of eval.json; `function` maps one row x to (codes, y_hat)."""
    places = [(n, t) for n, ids in enumerate(SEQUENCES) for t, token in enumerate(ids) if is_content(token)]
    clean = [brute_pass(lm, ids, {}) for ids in SEQUENCES]
    y = {(n, t): clean[n][0][predicts, t] for n, t in places}
    made = {(n, t): function(clean[n][0][reads, t]) for n, t in places}
    y_hat = {place: out for place, (_, out) in made.items()}
    mean = sum(y.values(), np.zeros(D)) / len(y)

    def log_probs(rows: dict) -> list[np.ndarray]:
        cut = [{(predicts, t): row for (m, t), row in rows.items() if m == n} for n in range(len(SEQUENCES))]
        return [brute_pass(lm, ids, cut[n])[1] for n, ids in enumerate(SEQUENCES)]

    predicted = [
        (n, t) for n, ids in enumerate(SEQUENCES) for t in range(len(ids) - 1) if is_content(SEQUENCES[n][t + 1])
    ]

    def ce(passed: list[np.ndarray]) -> float:
        return -sum(passed[n][t][SEQUENCES[n][t + 1]] for n, t in predicted) / len(predicted)

    p, q = [log for _, log in clean], log_probs(y_hat)
    zero, average = ce(log_probs(dict.fromkeys(y, np.zeros(D)))), ce(log_probs(dict.fromkeys(y, mean)))
    error = sum(float(((y[place] - y_hat[place]) ** 2).sum()) for place in places)
    firings = np.sum([codes > 0 for codes, _ in made.values()], axis=0)
    fvu = error / sum(((row - mean) ** 2).sum() for row in y.values())
    cosines = [y[at] @ y_hat[at] / np.linalg.norm(y[at]) / np.linalg.norm(y_hat[at]) for at in places]
    return {
        "tokens": len(places),
        "l0": firings.sum() / len(places),
        "l1": sum(codes.sum() for codes, _ in made.values()) / len(places),
        "mse": error / (len(places) * D),
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "ev_uncentered": 1 - error / sum((row**2).sum() for row in y.values()),
        "cosine": sum(cosines) / len(places),
        "ce_clean": ce(p),
        "ce_spliced": ce(q),
        "ce_zero_ablated": zero,
        "ce_mean_ablated": average,
        "delta_loss": ce(q) - ce(p),
        "loss_recovered": (zero - ce(q)) / (zero - ce(p)),
        "predicted_tokens": len(predicted),
        "kl": sum((np.exp(p[n][t]) * (p[n][t] - q[n][t])).sum() for n, t in predicted) / len(predicted),
        "dead_fraction": (firings == 0).sum() / len(firings),
        "dead_window": len(places),
        "dense_fraction": (firings > 0.1 * len(places)).sum() / len(firings),
    }


def a_batch(sequences: list[list[int]]) -> TokenBatch:
    ids = torch.tensor(sequences)
    content = (ids != BOS) & (ids != EOS) & (ids != PAD)
    numbers, positions = torch.arange(len(ids))[:, None].expand_as(ids), torch.arange(ids.shape[1]).expand_as(ids)
    return TokenBatch(ids, ids != PAD, content, numbers, positions)


def all_text() -> list[TokenBatch]:
    return [a_batch(SEQUENCES)]


def a_coder(reads: Site, predicts: Site, architecture: str = "relu", **fields: Any) -> WiredCoder:
    """A random float64 coder, so that only the fp32 log-softmax rounds."""
    made = {"d_in": D, "d_out": D, "width": F, "sparsity": 3} | fields
    coder = coders.build(coders.config_type(architecture).read(made, "test"))
    coder.initialise(torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        coder.b_enc[:2] = -100.0  # two latents that never fire
    return wired(coder, reads, predicts)


def wired(coder: Any, reads: Site, predicts: Site) -> WiredCoder:
    kind = "sae" if reads == predicts else "transcoder"
    return WiredCoder(Wiring(wiring=kind, reads=(reads,), predicts=(predicts,)), coder)


class Constant:
    """Stands in for a coder: predicts the same row always."""

    def __init__(self, row: Tensor) -> None:
        self.row = row
        self.W_enc = row

    def encode(self, x: Tensor) -> Latents:
        return Latents(x.new_zeros(len(x), 1), 1)

    def decode(self, latents: Latents, x: Tensor) -> Tensor:
        return self.row.expand(len(latents.values), -1)


class Identity(Constant):
    """Stands in for a perfect coder: the positive and the negative parts are its codes."""

    def encode(self, x: Tensor) -> Latents:
        return Latents(torch.cat([x.clamp(min=0), (-x).clamp(min=0)], dim=1), 2 * D)

    def decode(self, latents: Latents, x: Tensor) -> Tensor:
        return latents.values[:, :D] - latents.values[:, D:]


def identity(site: Site) -> WiredCoder:
    return wired(Identity(torch.zeros(D, dtype=torch.float64)), site, site)


def brute_relu(coder: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    w = {name: tensor.numpy() for name, tensor in coder.tensors().items()}

    def function(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = np.maximum(w["W_enc"] @ x + w["b_enc"], 0)
        return codes, codes @ w["W_dec"] + w["b_dec"]

    return function


def brute_topk(coder: Any) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    relu, W_dec = brute_relu(coder), coder.tensors()["W_dec"].numpy()

    def function(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes, _ = relu(x)
        codes[np.argsort(-codes)[3:]] = 0
        return codes, codes @ W_dec

    return function


def close(expected: dict[str, Any]) -> Any:
    # Losses pass through an fp32 log-softmax of logits below 32, hence a few 1e-6; loss_recovered divides their
    # differences, which loses up to two more digits here.
    recovered = {"loss_recovered": pytest.approx(expected["loss_recovered"], rel=1e-4)}
    return {name: pytest.approx(value, rel=1e-6, abs=5e-6) for name, value in expected.items()} | recovered


@pytest.mark.parametrize("site", [RESID0, MLP_OUT], ids=str)
@pytest.mark.parametrize(("architecture", "brute"), [("relu", brute_relu), ("topk", brute_topk)])
def test_every_number_is_its_definition(site: Site, architecture: str, brute: Callable):
    lm, coder = FakeLM(), a_coder(site, site, architecture)
    result = evaluate(lm, all_text, {"c": coder}, tokens=None)["c"]
    assert result == close(brute_evaluation(lm, site, site, brute(coder.coder)))
    assert result["delta_loss"] != pytest.approx(0, abs=1e-3)


def test_a_transcoder_is_spliced_where_it_predicts():
    lm, coder = FakeLM(), a_coder(MLP_IN, MLP_OUT, encoder_init="own")
    result = evaluate(lm, all_text, {"tc": coder}, tokens=None)["tc"]
    assert result == close(brute_evaluation(lm, MLP_IN, MLP_OUT, brute_relu(coder.coder)))
    assert {site for site, _, _ in lm.splices} == {MLP_OUT}


def test_a_perfect_coder_costs_nothing():
    result = evaluate(FakeLM(), all_text, {"c": identity(RESID0)}, tokens=None)["c"]
    assert result["fvu"] == 0
    assert result["delta_loss"] == 0
    assert result["kl"] == 0
    assert result["loss_recovered"] == 1
    assert result["cosine"] == pytest.approx(1, abs=1e-12)


def test_a_zero_coder_is_zero_ablation():
    coder = wired(Constant(torch.zeros(D, dtype=torch.float64)), RESID0, RESID0)
    result = evaluate(FakeLM(), all_text, {"c": coder}, tokens=None)["c"]
    assert result["ce_spliced"] == result["ce_zero_ablated"]
    assert result["loss_recovered"] == 0
    assert (result["cosine"], result["ev_uncentered"], result["l0"], result["dead_fraction"]) == (0, 0, 0, 1)


def test_a_mean_coder_is_mean_ablation():
    lm, content = FakeLM(), a_batch(SEQUENCES).content
    rows = lm.run(a_batch(SEQUENCES).token_ids, content, read=[RESID0]).activations[RESID0][content]
    coder = wired(Constant(rows.mean(dim=0)), RESID0, RESID0)
    result = evaluate(lm, all_text, {"c": coder}, tokens=None)["c"]
    assert result["fvu"] == pytest.approx(1, rel=1e-12)
    assert result["ce_spliced"] == pytest.approx(result["ce_mean_ablated"], abs=1e-6)  # fp32 log-softmax
    assert result["ce_mean_ablated"] != pytest.approx(result["ce_zero_ablated"], abs=1e-3)


def test_special_tokens_keep_their_own_activations():
    lm, row = FakeLM(), torch.full((D,), 7.0, dtype=torch.float64)
    evaluate(lm, all_text, {"c": wired(Constant(row), RESID0, RESID0)}, tokens=None)
    content = a_batch(SEQUENCES).content
    assert len(lm.splices) == 3  # the coder, zeros, the mean
    for _, before, after in lm.splices:
        assert torch.equal(after[~content], before[~content])
    assert any(bool((after[content] == row).all()) for _, _, after in lm.splices)


def test_ablations_run_once_a_site():
    lm = FakeLM()
    evaluate(lm, all_text, {name: a_coder(RESID0, RESID0) for name in "abc"}, tokens=None)
    assert lm.passes == 2 + 3 + 2  # two clean looks, one splice a coder, two ablations of the one site


def test_coders_do_not_disturb_each_other():
    many = {"a": a_coder(RESID0, RESID0), "b": a_coder(RESID1, RESID1), "tc": a_coder(MLP_IN, MLP_OUT)}
    together = evaluate(FakeLM(), all_text, many, tokens=None)
    for name, coder in many.items():
        assert together[name] == evaluate(FakeLM(), all_text, {name: coder}, tokens=None)[name]


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4], [3], [2, 4]])
def test_batches_may_come_in_any_size_and_order(cuts: list[int]):
    coder = a_coder(RESID0, RESID0)
    whole = evaluate(FakeLM(), all_text, {"c": coder}, tokens=None)["c"]
    ends = [0, *cuts, len(SEQUENCES)]
    batches = [a_batch(SEQUENCES[a:b]) for a, b in itertools.pairwise(ends)][::-1]
    pieces = evaluate(FakeLM(), lambda: batches, {"c": coder}, tokens=None)["c"]
    # The same rows and losses in other matrix shapes and another order of summation.
    assert pieces == close(whole)


@pytest.mark.parametrize(("budget", "measured"), [(1, 4), (4, 4), (5, 10), (10, 10), (11, 11), (1000, 20)])
def test_it_measures_as_few_batches_as_reach_the_budget(budget: int, measured: int):
    batches = [a_batch([ids]) for ids in SEQUENCES]  # 4, 6, 1, 5, 4 content tokens
    result = evaluate(FakeLM(), lambda: batches, {"c": identity(RESID0)}, tokens=budget)["c"]
    assert result["tokens"] == measured


def test_the_means_are_those_of_the_measured_batches():
    batches = [a_batch([ids]) for ids in SEQUENCES]
    told: list[int] = []
    coder = {"c": a_coder(RESID0, RESID0)}
    result = evaluate(FakeLM(), lambda: batches, coder, tokens=5, progress=told.append)["c"]
    assert (result["tokens"], result["dead_window"], told) == (10, 10, [4, 10])
    first_two = evaluate(FakeLM(), lambda: batches[:2], coder, tokens=None)["c"]
    assert result == first_two


def test_a_batch_without_content_changes_nothing():
    empty = a_batch([[BOS, EOS, PAD]])
    coder = {"c": a_coder(RESID0, RESID0)}
    with_empty = evaluate(FakeLM(), lambda: [empty, *all_text(), empty], coder, tokens=None)
    assert with_empty == evaluate(FakeLM(), all_text, coder, tokens=None)


@pytest.mark.parametrize("text", [[], [a_batch([[BOS, EOS, PAD]])]])
def test_text_without_content_is_refused(text: list[TokenBatch]):
    with pytest.raises(UserError, match="0 content tokens"):
        evaluate(FakeLM(), lambda: text, {"c": a_coder(RESID0, RESID0)}, tokens=None)


def test_text_without_a_token_to_predict_is_refused():
    with pytest.raises(UserError, match="0 tokens to predict"):
        evaluate(FakeLM(), lambda: [a_batch([[5], [6]])], {"c": a_coder(RESID0, RESID0)}, tokens=None)


def test_a_coder_that_gives_nan_is_named():
    broken = wired(Constant(torch.full((D,), math.nan, dtype=torch.float64)), RESID0, RESID0)
    with pytest.raises(NonFiniteError, match=r"'broken'.*L00\.resid_post"):
        evaluate(FakeLM(), all_text, {"fine": a_coder(RESID0, RESID0), "broken": broken}, tokens=None)


@pytest.mark.parametrize(
    ("reads", "bad"),
    [(MLP_OUT, "L01.mlp_out"), (MLP_IN, "L01.mlp_in"), (MLP_IN, "L01.mlp_out")],
    ids=["sae", "read", "predicted"],
)
def test_activations_that_are_not_finite_are_named(reads: Site, bad: str):
    class Overflowing(FakeLM):
        def run(self, *args: Any, **kwargs: Any) -> FakeReading:
            reading = super().run(*args, **kwargs)
            for site, x in reading.activations.items():
                if str(site) == bad:
                    x[1, 2] = math.inf
            return reading

    with pytest.raises(NonFiniteError, match=rf"{bad}.*'c'"):
        evaluate(Overflowing(), all_text, {"c": a_coder(reads, MLP_OUT)}, tokens=None)


def test_a_splice_that_breaks_the_model_is_named():
    far = wired(Constant(torch.full((D,), 1e308, dtype=torch.float64)), RESID1, RESID1)
    with pytest.raises(NonFiniteError, match=r"'far'.*L01\.resid_post"):
        evaluate(FakeLM(), all_text, {"far": far}, tokens=None)


def test_no_gradient_is_recorded_and_no_coder_gives_no_result():
    coder = a_coder(RESID0, RESID0)
    lm = FakeLM()
    evaluate(lm, all_text, {"c": coder}, tokens=None)
    assert not any(after.requires_grad for _, _, after in lm.splices)
    assert evaluate(lm, all_text, {}, tokens=None) == {}


def test_the_budget_is_above_0():
    assert EvalConfig().tokens == 100_000
    with pytest.raises(UserError, match="tokens"):
        EvalConfig.read({"tokens": 0}, "[eval]")
