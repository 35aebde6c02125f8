"""The evaluation on a trained language model: what must hold whatever its weights are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.evals.evaluate import evaluate
from panscope.evals.spec import EvalSpec
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel
from panscope.types import Site, TokenBatch

TEXTS = [
    "Once upon a time, there was a little girl named Lily. She loved to play in the park with her dog.",
    "Tom had a red ball. He threw the ball to his friend, and they laughed.",
    "The sun was warm. A small bird sat in the big tree and sang a song.",
]


@pytest.fixture(scope="module")
def lm(shared: Path) -> LanguageModel:
    return load(LanguageModelConfig(path=str(shared / "models" / "stories260K"), device="cpu"))


def text(lm: LanguageModel) -> list[TokenBatch]:
    """BOS and one text a sequence, padded with it."""
    bos = lm.tokenizer.bos_id
    assert bos is not None
    encoded = [[bos, *ids] for ids in lm.tokenizer.encode(TEXTS)]
    longest = max(map(len, encoded))
    ids = torch.tensor([sequence + [bos] * (longest - len(sequence)) for sequence in encoded])
    mask = torch.tensor([[t < len(sequence) for t in range(longest)] for sequence in encoded])
    positions = torch.arange(longest).expand_as(ids)
    return [TokenBatch(ids, mask, mask & (ids != bos), torch.arange(len(ids))[:, None].expand_as(ids), positions)]


def measure(lm: LanguageModel, many: dict[str, WiredCoder], batches: list[TokenBatch] | None = None) -> dict[str, Any]:
    """The fields of each coder's eval.json."""
    batches = text(lm) if batches is None else batches
    results = evaluate(lm, lambda: batches, many, context=64, spec=EvalSpec(probes=3, interventions_per_pass=2))
    return {name: result.fields for name, result in results.items()}


def plus_minus_identity(d: int, reads: Site, predicts: Site) -> WiredCoder:
    """A ReLU coder whose latents are the positive and the negative parts of every dimension."""
    config = coders.config_type("relu").read({"d_in": d, "d_out": d, "width": 2 * d, "sparsity": 1}, "test")
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    weights = {"W_enc": both, "W_dec": both, "b_enc": torch.zeros(2 * d), "b_dec": torch.zeros(d)}
    kind = "sae" if reads == predicts else "transcoder"
    coder = coders.build(config).load_tensors(weights)
    return WiredCoder(Wiring(wiring=kind, reads=(reads,), predicts=(predicts,)), coder)


def scaled(coder: WiredCoder, factor: float) -> WiredCoder:
    with torch.no_grad():
        coder.coder.W_dec.mul_(factor)
    return coder


@pytest.mark.parametrize("kind", ["resid_post", "attn_z", "mlp_out"])
def test_a_perfect_a_zero_and_a_half_coder(lm: LanguageModel, kind: str):
    site = Site(2, kind)
    make: Callable[[float], WiredCoder] = lambda factor: scaled(plus_minus_identity(64, site, site), factor)  # noqa: E731
    results = measure(lm, {"one": make(1), "half": make(0.5), "zero": make(0)})
    one, half, zero = results["one"], results["half"], results["zero"]
    assert (one["fvu"], one["delta_loss"], one["kl"], one["loss_recovered"]) == (0, 0, 0, 1)
    assert (zero["ce_spliced"], zero["loss_recovered"]) == (zero["ce_zero_ablated"], 0)
    # fp32 rows halved are exact, so the error is a quarter of the size.
    assert half["ev_uncentered"] == pytest.approx(0.75, rel=1e-9)
    assert half["relative_reconstruction_bias"] == pytest.approx(0.5, rel=1e-9)
    assert float(one["ce_clean"]) < float(half["ce_spliced"]) < float(zero["ce_spliced"])
    assert half["kl"] > 0
    assert half["kl_reverse"] > 0
    assert float(one["ce_clean"]) < 3  # a trained model on its own kind of text, in nats
    assert one["tokens"] == one["predicted_tokens"]  # every text begins with BOS
    # Scaling every latent's decoder vector by the same factor leaves each one's share as it is.
    assert half["uniformity"] == pytest.approx(one["uniformity"], rel=1e-6)
    assert 0 < one["uniformity"] < 1
    assert zero["probed_tokens"] == 0


def test_the_clean_loss_is_that_of_transformers(lm: LanguageModel):
    """Its own loss, one unpadded sequence at a time."""
    (batch,) = text(lm)
    total, count = 0.0, 0
    for ids, mask in zip(batch.token_ids, batch.attention_mask, strict=True):
        alone = ids[mask][None]
        total += lm.model(input_ids=alone, labels=alone).loss.item() * (alone.shape[1] - 1)
        count += alone.shape[1] - 1
    site = Site(0, "resid_post")
    result = measure(lm, {"c": plus_minus_identity(64, site, site)}, [batch])["c"]
    assert result["predicted_tokens"] == count
    assert result["ce_clean"] == pytest.approx(total / count, rel=1e-5)  # fp32 model, with padding and without


def test_a_transcoder_replaces_the_mlp_output(lm: LanguageModel):
    reads, predicts = Site(1, "mlp_in"), Site(1, "mlp_out")
    nothing = scaled(plus_minus_identity(64, reads, predicts), 0)
    result = measure(lm, {"tc": nothing})["tc"]
    assert result["ce_spliced"] == result["ce_zero_ablated"]
    assert float(result["l0"]) > 0  # its codes came from what it reads
    assert result["ev_uncentered"] == 0
