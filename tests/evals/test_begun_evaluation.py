"""Passes that begin in the middle measure what whole ones do, at every kind of site of a trained model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope import coders
from panscope.coders.wiring import WiredCoder, Wiring
from panscope.data.documents import DataConfig, open_documents
from panscope.data.tokens import TokenStream
from panscope.evals.evaluate import evaluate
from panscope.evals.spec import EvalSpec
from panscope.lms.load import LanguageModelConfig, load
from panscope.lms.model import LanguageModel, Reading, Start
from panscope.types import SITE_KINDS, Site
from tests.support.definitions import differences


class WholePasses:
    """Every pass begins at the text; what would have been given is put in place at its site."""

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self.started: list[int] = []

    def run(self, *arguments: Any, splice: dict[Site, Any], start: Start | None = None, **options: Any) -> Reading:
        given = {} if start is None else start.known_outputs
        self.started.append(-1 if start is None else start.layer)
        put = {site: lambda _, tensor=tensor: tensor for site, tensor in given.items()}
        return self._lm.run(*arguments, splice=put | splice, **options)

    def gradients(self, *arguments: Any, **options: Any) -> dict[Site, Tensor]:
        return self._lm.gradients(*arguments, **options)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(LanguageModelConfig(device="cpu"))


@pytest.mark.parametrize("kind", SITE_KINDS)
def test_begun_and_whole_passes_measure_the_same(kind: str, lm: LanguageModel):
    data = DataConfig(context=32, sequences=8)
    documents = open_documents(data)
    generator, measured = torch.Generator().manual_seed(0), {}
    for layer in range(lm.n_layers):
        site = Site(layer, kind)
        d = lm.width(site)
        coder = coders.build(
            coders.config_type("topk").read({"d_in": d, "d_out": d, "width": 2 * d, "sparsity": 8}, "it")
        )
        coder.initialise(generator)
        measured[str(site)] = WiredCoder(Wiring(wiring="sae", reads=(site,), predicts=(site,)), coder)

    def open_tokens() -> TokenStream:
        return TokenStream(documents, lm.tokenizer, data, part="held_out", seed=0, epochs=1)

    whole, question = WholePasses(lm), EvalSpec(tokens=400, probes=3)
    expected = evaluate(whole, open_tokens, measured, context=32, spec=question)
    found = evaluate(lm, open_tokens, measured, context=32, spec=question)
    assert set(range(lm.n_layers)) <= set(whole.started)
    for name, result in expected.items():
        assert result.fields["delta_loss"] != 0
        assert (result.fields["probed_tokens"] > 0) == (kind != "mlp_in_no_gain")
        assert not differences(found[name].fields, result.fields, 1e-6), name
        assert not differences(found[name].tables["positions"], result.tables["positions"], 1e-6), name
    interventions_per_pass = evaluate(
        lm, open_tokens, measured, context=32, spec=replace(question, interventions_per_pass=3)
    )
    for name, result in found.items():  # other shapes of the same products, in float32
        assert not differences(interventions_per_pass[name].fields, result.fields, 1e-4), name
