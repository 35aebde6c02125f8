"""The whole evaluation on a tiny language model: what is replaced, how often the model is run, what is refused.

That every number is its definition is in test_oracle.py. Shape letters: N sequences, T tokens, D width, F latents.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from panscope.evals.accumulator import Result
from panscope.evals.evaluate import evaluate
from panscope.evals.spec import EvalConfig, EvalShard, EvalSpec
from panscope.types import NonFiniteError, Site, TokenBatch, UserError
from tests.support.averaging_lm import (
    BOS,
    EOS,
    MLP_IN,
    MLP_OUT,
    PAD,
    RESID0,
    RESID1,
    SEQUENCES,
    Constant,
    D,
    FakeLM,
    FakeReading,
    a_batch,
    a_coder,
    all_text,
    built,
    identity,
    in_batches,
    measure,
    over,
    wired,
)  # fmt: skip
from tests.support.definitions import differences

SUBSETS: dict[str, Any] = {"subsets": ("even", "odd"), "subset_of": lambda document: document % 2}


def row_of(value: float) -> Tensor:
    return torch.full((D,), value, dtype=torch.float64)


def same(found: Result, expected: Result) -> bool:
    """To the last bit; NaN equals NaN."""
    return not differences([found.fields, found.tables], [expected.fields, expected.tables], 0)


def test_a_transcoder_is_spliced_where_it_predicts():
    lm = FakeLM()
    fields = measure({"tc": a_coder(MLP_IN, MLP_OUT, encoder_init="own")}, lm=lm)["tc"].fields
    assert fields["delta_loss"] != pytest.approx(0, abs=1e-3)
    assert {site for site, _, _ in lm.splices} == {MLP_OUT}


def test_a_perfect_coder_costs_nothing():
    fields = measure({"c": identity(RESID0)})["c"].fields
    for name in ("fvu", "fvu_scalar", "nmse_token", "mse", "delta_loss", "kl", "kl_reverse"):
        assert fields[name] == 0, name
        assert fields["intervals"][name] == [0, 0], name
    for name in ("loss_recovered", "explained_variance", "ev_uncentered", "ev_token_mean"):
        assert fields[name] == 1, name
    for name in ("cosine", "l2_ratio", "relative_reconstruction_bias"):
        assert fields[name] == pytest.approx(1, abs=1e-12), name


def test_a_zero_coder_is_zero_ablation():
    fields = measure({"c": wired(Constant(row_of(0)), RESID0, RESID0)}, probes=5)["c"].fields
    assert fields["ce_spliced"] == fields["ce_zero_ablated"]
    assert fields["kl"] == fields["kl_zero_ablated"]
    assert (fields["loss_recovered"], fields["l2_ratio"]) == (0, 0)
    assert (fields["cosine"], fields["ev_uncentered"], fields["l0"], fields["dead_fraction"]) == (0, 0, 0, 1)
    assert fields["probed_tokens"] == 0  # no latent matters anywhere
    assert math.isnan(fields["uniformity"])
    assert math.isnan(fields["relative_reconstruction_bias"])


def test_a_mean_coder_is_mean_ablation():
    lm, content = FakeLM(), a_batch(SEQUENCES).content
    rows = lm.run(a_batch(SEQUENCES).token_ids, content, read=[RESID0]).activations[RESID0][content]
    fields = measure({"c": wired(Constant(rows.mean(dim=0)), RESID0, RESID0)})["c"].fields
    assert fields["fvu"] == pytest.approx(1, rel=1e-12)
    assert fields["ce_spliced"] == pytest.approx(fields["ce_mean_ablated"], abs=1e-12)
    assert fields["ce_mean_ablated"] != pytest.approx(fields["ce_zero_ablated"], abs=1e-3)


@pytest.mark.parametrize("splice", ["content", "all"])
@pytest.mark.parametrize("interventions_per_pass", [1, 2])
def test_special_tokens_keep_their_own_activations_unless_asked_and_padding_always(
    splice: str, interventions_per_pass: int
):
    lm, row, batch = FakeLM(), row_of(7.0), a_batch(SEQUENCES)
    measure(
        {"c": wired(Constant(row), RESID0, RESID0)}, lm=lm, splice=splice, interventions_per_pass=interventions_per_pass
    )
    replaced = batch.content if splice == "content" else batch.attention_mask
    changes = [pair for _, before, after in lm.splices for pair in zip(before.split(5), after.split(5), strict=True)]
    assert len(changes) == 3  # zeros, the mean, the coder
    for before, after in changes:
        assert torch.equal(after[~replaced], before[~replaced])
    put = [after[replaced] for _, after in changes]
    assert [bool((rows == rows[0]).all()) for rows in put] == [True] * 3
    assert [bool((rows == row).all()) for rows in put] == [False, False, True]
    assert not put[0].any()


@pytest.mark.parametrize(("interventions_per_pass", "runs"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (8, [5])])
def test_ablations_run_once_a_site_and_passes_of_a_site_together(interventions_per_pass: int, runs: list[int]):
    lm = FakeLM()
    measure({name: a_coder(RESID1, RESID1) for name in "abc"}, lm=lm, interventions_per_pass=interventions_per_pass)
    looks, altered = lm.passes[:2], lm.passes[2:]
    assert looks == [(None, 5), (None, 5)]
    assert altered == [(1, 5 * copies) for copies in runs]  # zeros, the mean, three coders; from the site's block


def test_sites_are_not_mixed_in_one_pass_and_begin_at_their_own_block():
    lm = FakeLM()
    many = {f"{site}{n}": a_coder(site, site) for n in range(2) for site in (RESID1, RESID0)}
    measure(many, lm=lm, interventions_per_pass=8)
    assert lm.passes == [(None, 5), (None, 5), (0, 4 * 5), (1, 4 * 5)]


def test_ablations_of_a_site_serve_coders_of_several_sites_too():
    lm = FakeLM()
    many = {
        "layers": over("multilayer", [RESID1, RESID0], built("relu", D)),
        "cross": over("crosscoder", [RESID0, RESID1], built("relu", 2 * D)),
        "one": a_coder(RESID0, RESID0),
    }
    measure(many, lm=lm)
    assert len(lm.passes) == 2 + 2 * 2 + 5


def test_one_backward_pass_a_batch_serves_every_coder_of_every_site():
    lm, text = FakeLM(), in_batches(SEQUENCES, 2)
    many = {"a": a_coder(RESID0, RESID0), "b": a_coder(RESID1, RESID1), "tc": a_coder(MLP_IN, MLP_OUT)}
    measure(many, text, lm, probes=4)
    assert lm.backward_passes == 2  # the third batch has no sequence below 4


def test_coders_do_not_disturb_each_other():
    many = {"a": a_coder(RESID0, RESID0), "b": a_coder(RESID1, RESID1), "tc": a_coder(MLP_IN, MLP_OUT)}
    interventions_per_pass = measure(many, probes=5, **SUBSETS)
    for name, coder in many.items():
        assert same(interventions_per_pass[name], measure({name: coder}, probes=5, **SUBSETS)[name])


@pytest.mark.parametrize("interventions_per_pass", [2, 8])
def test_passes_together_give_the_same_numbers(interventions_per_pass: int):
    many = {name: a_coder(site, site) for name, site in {"a": RESID0, "b": RESID0, "c": RESID1}.items()}
    alone = measure(many, interventions_per_pass=1)
    for name, result in measure(many, interventions_per_pass=interventions_per_pass).items():
        assert not differences(result.fields, alone[name].fields, 1e-12)


@pytest.mark.parametrize(("budget", "measured"), [(1, 4), (4, 4), (5, 10), (10, 10), (11, 11), (1000, 20)])
def test_it_measures_as_few_batches_as_reach_the_budget(budget: int, measured: int):
    fields = measure({"c": identity(RESID0)}, in_batches(SEQUENCES, 1), tokens=budget)["c"].fields
    assert fields["tokens"] == measured


def test_the_means_are_those_of_the_measured_batches():
    batches, told = in_batches(SEQUENCES, 1), []
    coder = {"c": a_coder(RESID0, RESID0)}
    result = evaluate(FakeLM(), lambda: batches, coder, context=7, spec=EvalSpec(tokens=5), progress=told.append)["c"]
    assert (result.fields["tokens"], result.fields["dead_window"], told) == (10, 10, [4, 10])
    first_two = evaluate(FakeLM(), lambda: batches[:2], coder, context=7, spec=EvalSpec())["c"]
    assert same(result, first_two)


def test_a_batch_without_content_changes_nothing():
    empty = a_batch([[BOS, EOS, PAD]])
    coder = {"c": a_coder(RESID0, RESID0)}
    assert same(measure(coder, [empty, *all_text(), empty])["c"], measure(coder)["c"])


def test_every_kind_of_token_of_a_subset_counts_there():
    """With a stream of documents: a prediction belongs to the subset of the token that is predicted."""
    ids = torch.tensor([[EOS, 5, 6, EOS, 7, 8]])
    documents = torch.tensor([[0, 1, 1, 1, 2, 2]])  # the EOS of document 0 comes first, none of its text
    batch = TokenBatch(ids, ids >= 0, ids != EOS, documents, torch.arange(6)[None])
    fields = measure({"c": identity(RESID0)}, [batch], **SUBSETS)["c"].fields
    assert fields["predicted_tokens"] == 4
    assert {name: part["predicted_tokens"] for name, part in fields["subsets"].items()} == {"even": 2, "odd": 2}
    assert {name: part["tokens"] for name, part in fields["subsets"].items()} == {"even": 2, "odd": 2}


def test_a_position_that_only_predicts_or_only_holds_a_token_has_a_row_too():
    table = measure({"c": identity(RESID0)}, [a_batch([[BOS, 5, 6, PAD], [BOS, 7, EOS, PAD]])])["c"].tables["positions"]
    assert table["position"] == [0, 1, 2]
    assert (table["tokens"], table["predicted_tokens"]) == ([0, 2, 1], [2, 1, 0])
    assert [math.isnan(value) for value in table["mse"]] == [True, False, False]
    assert [math.isnan(value) for value in table["ce_clean"]] == [False, False, True]


def test_one_subset_is_not_given_apart():
    assert "subsets" not in measure({"c": identity(RESID0)})["c"].fields


@pytest.mark.parametrize("text", [[], [a_batch([[BOS, EOS, PAD]])]])
def test_text_without_content_is_refused(text: list[TokenBatch]):
    with pytest.raises(UserError, match="0 content tokens"):
        measure({"c": a_coder(RESID0, RESID0)}, text)


def test_text_without_a_token_to_predict_is_refused():
    with pytest.raises(UserError, match="0 tokens to predict"):
        measure({"c": a_coder(RESID0, RESID0)}, [a_batch([[5], [6]])])


def test_a_coder_that_gives_nan_is_named():
    broken = wired(Constant(row_of(math.nan)), RESID0, RESID0)
    with pytest.raises(NonFiniteError, match=r"'broken'.*L00\.resid_post"):
        measure({"fine": a_coder(RESID0, RESID0), "broken": broken})


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
        measure({"c": a_coder(reads, MLP_OUT)}, lm=Overflowing())


@pytest.mark.parametrize("interventions_per_pass", [1, 4])
def test_a_splice_that_breaks_the_model_is_named(interventions_per_pass: int):
    far = wired(Constant(row_of(1e308)), RESID1, RESID1)
    with pytest.raises(NonFiniteError, match=r"'far'.*L01\.resid_post"):
        measure({"far": far}, interventions_per_pass=interventions_per_pass)


def test_no_gradient_is_recorded_and_no_coder_gives_no_result():
    lm = FakeLM()
    measure({"c": a_coder(RESID0, RESID0)}, lm=lm, probes=5)
    assert lm.backward_passes == 1
    assert not any(after.requires_grad for _, _, after in lm.splices)
    assert measure({}) == {}


def test_a_site_without_a_gradient_has_no_uniformity():
    """What is read before a norm's gain is beside the model's own way."""

    class Beside(FakeLM):
        """Has the first block's output at such a site too."""

        def run(self, *args: Any, read: Any, **kwargs: Any) -> FakeReading:
            reading = super().run(*args, read=[*read, RESID0], **kwargs)
            if RESID0 in reading.activations:
                reading.activations[beside] = reading.activations[RESID0]
            return reading

    beside = Site(1, "mlp_in_no_gain")
    many = {"beside": a_coder(beside, beside), "c": a_coder(RESID0, RESID0)}
    result = measure(many, lm=Beside(), probes=5)
    assert (result["beside"].fields["probed_tokens"], result["c"].fields["probed_tokens"]) == (0, 4)
    assert math.isnan(result["beside"].fields["uniformity"])


def test_the_budget_is_above_0():
    assert EvalConfig().tokens == 100_000
    with pytest.raises(UserError, match="tokens"):
        EvalConfig.read({"tokens": 0}, "[eval]")


def test_a_share_is_written_as_it_is_read():
    assert EvalShard.parse("2/8") == EvalShard(1, 8)
    assert str(EvalShard.parse("8/8")) == "8/8"
    assert [n for n in range(7) if n in EvalShard.parse("2/3")] == [1, 4]
    assert all(sum(batch in EvalShard(n, 3) for n in range(3)) == 1 for batch in range(7))
    for bad in ("0/8", "9/8", "8", "a/b", "1/0", "-1/2", ""):
        with pytest.raises(UserError, match="2/8"):
            EvalShard.parse(bad)


def test_codes_of_coders_are_measured_on_content_alone():
    """With every token replaced, a coder codes special tokens too; they count in no number of its rows."""
    fields = {
        splice: measure({"c": a_coder(RESID0, RESID0, "topk")}, splice=splice, probes=5)["c"].fields
        for splice in ("content", "all")
    }
    changed = {name for name in fields["all"] if differences(fields["all"][name], fields["content"][name], 1e-12)}
    of_losses = {"ce_spliced", "ce_zero_ablated", "ce_mean_ablated", "delta_loss", "loss_recovered"}
    of_kl = {"kl", "kl_reverse", "kl_reverse_per_sequence", "kl_zero_ablated"}
    assert changed == of_losses | of_kl | {"intervals"}
