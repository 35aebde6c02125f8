"""Every option of every recipe learns: in each wiring it can have, its loss is finite and its weights move."""

from typing import Any

import pytest
import torch

from panscope import coders
from panscope.activations.norms import measure_norms
from panscope.coders.normaliser import PER_ROW
from panscope.lms.facts import ModelFacts
from panscope.planning import recipe
from panscope.planning.plan import Plan, SuiteConfig, plan
from panscope.runs.normalisers import normaliser_of
from panscope.training.coder_trainer import CoderTrainer
from panscope.types import ActivationBatch, UserError

FACTS = ModelFacts(
    name="tiny",
    n_layers=4,
    d_model=16,
    heads_width=24,
    vocabulary=100,
    context=64,
    parameters=10_000,
    matmul_parameters=10_000,
)
ROWS, STEPS = 64, 1000
LATER = range(STEPS // 2, STEPS // 2 + 12)
"""Steps past every warm-up; float16 skips its first ones until the scale of the loss fits."""

WIRINGS = {
    "sae": {"sites": ["attn_z"], "layers": [1]},
    "transcoder": {"sites": ["mlp_in_no_gain -> mlp_out"], "layers": [2]},
    "multilayer": {"sites": ["resid_post"], "layers": "all"},
    "crosscoder": {"sites": ["resid_post + attn_z"], "layers": [1, 3]},
}
RECIPES = [(name, architecture) for name in recipe.names() for architecture in recipe.load(name).architectures()]
OPTIONS = [
    ("gemma_scope", "sae", {"skip": False, "prefixes": [0.25, 1.0]}),
    ("gemma_scope_2", "sae", {"target_of": "batch"}),
    ("gemma_scope_2", "sae", {"target_factor": 100.0, "frequency_limit": 0.01}),
    ("gemma_scope_2", "transcoder", {"skip": True}),
    ("gemma_scope_transcoder", "transcoder", {"skip": True}),
    ("multilayer_sae", "multilayer", {"b_dec_init": "geometric_median_raw", "auxk_bias": True}),
    ("multilayer_sae", "multilayer", {"precision": "bfloat16", "average_decay": 0.9}),
    ("openai_topk", "sae", {"multi_coefficient": 0.125}),
    ("openai_topk", "sae", {"normaliser": "token_norm"}),
    ("llama_scope", "transcoder", {"skip": True}),
    ("llama_scope", "sae", {"normaliser": "rms_sqrt_d"}),
    ("anthropic_relu", "sae", {"normaliser": "rms_sqrt_d"}),
]
"""What the recipes' notes say a table may set: recipe, wiring, fields."""


def planned(name: str, architecture: str | None, wiring: str, **fields: Any) -> Plan:
    table: dict[str, Any] = {"recipe": name, "wiring": wiring, "width": 64, "dead_window": 1} | WIRINGS[wiring]
    has = recipe.load(name).fitted(STEPS, ROWS, architecture)
    if has["architecture"] in ("topk", "batchtopk", "matryoshka"):
        table["sparsity"] = 4
    elif "target_of" in has:
        table["target_l0"] = 8
    else:
        table["sparsity"] = 1e-2
    table |= {"architecture": architecture} if architecture else {}
    suite = SuiteConfig.read({"tokens": ROWS * STEPS, "train": {"batch": ROWS}, "coders": [table | fields]}, "test")
    return plan(suite, FACTS, 1 << 30)


def batch_for(found: Plan) -> ActivationBatch:
    """Rows off the origin and of another size at each site, as activations are."""
    generator = torch.Generator().manual_seed(0)
    rows = {}
    for place, site in enumerate(found.sites()):
        d = FACTS.width(site)
        rows[site] = (torch.randn(ROWS, d, generator=generator) + torch.randn(d, generator=generator)) * (3 + place)
    return ActivationBatch(rows, *(torch.arange(ROWS) for _ in range(3)))


def learns(found: Plan) -> None:
    """One step from the start and some past the warm-ups: finite losses, and every weight that learns has moved."""
    (one,) = found.coders
    batch = batch_for(found)
    coder = coders.build(one.coder).initialise(torch.Generator().manual_seed(1))
    normaliser = normaliser_of(one, measure_norms(iter([batch]), ROWS))
    trainer = CoderTrainer(one.name, coder, one.wiring, normaliser, one.training, steps=one.steps)
    before = {name: weight.detach().clone() for name, weight in coder.named_parameters()}
    for step in (0, *LATER):
        trainer.step(batch, step)
    assert trainer.read(LATER.stop)["loss"] > 0  # and raises if it is not finite
    assert trainer.is_finite()
    for name, weight in coder.named_parameters():
        assert torch.equal(weight, before[name]) != weight.requires_grad, name
    assert all(bool(torch.isfinite(weight).all()) for weight in trainer.finished().parameters())


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize(("name", "architecture"), RECIPES)
def test_every_recipe_learns_in_every_wiring_it_can_have(name: str, architecture: str, wiring: str) -> None:
    per_row = recipe.load(name).fitted(STEPS, ROWS, architecture)["normaliser"] in PER_ROW
    if per_row and wiring == "transcoder":
        with pytest.raises(UserError, match="the output of a transcoder cannot be brought back"):
            planned(name, architecture, wiring)
        return
    fields = {"loss_space": "normalised"} if per_row and wiring == "crosscoder" else {}
    learns(planned(name, architecture, wiring, **fields))


@pytest.mark.parametrize(("name", "wiring", "fields"), OPTIONS)
def test_every_option_a_recipe_speaks_of_learns(name: str, wiring: str, fields: dict[str, Any]) -> None:
    learns(planned(name, None, wiring, **fields))
