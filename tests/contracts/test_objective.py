"""The loss, codes, output and gradients of every architecture, option and shape against the oracle.

Both sides are float64, so that they choose the same latents and differ by the rounding of sums only.

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import Any

import pytest
import torch

from panscope import coders
from panscope.ops.base import Rows
from panscope.ops.dense import DenseOps
from tests.support.coder_cases import (
    AUXK,
    SPARSITY,
    B,
    D,
    F,
    assert_close,
    every_case,
    every_option,
    random_coder,
    random_rows,
)
from tests.support.oracle import Oracle


def test_the_contract_covers_every_architecture() -> None:
    assert SPARSITY.keys() == coders.ARCHITECTURES.keys()


@every_case
def test_values_and_gradients_are_the_papers(architecture: str, fields: dict[str, Any]) -> None:
    """With rows that count differently; that they all count 1 / B is the case below."""
    coder = random_coder(architecture, fields)
    rows = random_rows(coder, weighted=True)
    expected = Oracle(coder, rows, coder.config.sparsity).expected()
    found = coder.objective(rows, coder.config.sparsity, DenseOps())
    assert found.loss.shape == ()
    assert_close(found.loss.detach(), expected.loss)
    assert_close(found.latents.dense().detach(), expected.codes)
    assert_close(found.y_hat.detach(), expected.y_hat)
    assert 0 < expected.codes.count_nonzero() < expected.codes.numel()

    found.loss.backward()
    learned = {name: parameter for name, parameter in coder.named_parameters() if parameter.requires_grad}
    assert expected.gradients.keys() == learned.keys()
    kept_at_zero = set() if coder.config.encoder_bias else {"b_enc"}
    assert dict(coder.named_parameters()).keys() - learned.keys() == kept_at_zero
    for name, parameter in coder.named_parameters():
        if name in learned:
            assert parameter.grad is not None, name
            assert expected.gradients[name].count_nonzero() > 0, name
            assert_close(parameter.grad, expected.gradients[name])
        else:
            assert parameter.grad is None


@every_option
@pytest.mark.parametrize("factor", [0.4, 1.0, 2.0])
def test_the_sparsity_in_force_is_an_argument(architecture: str, fields: dict[str, Any], factor: float) -> None:
    """A schedule may ask for other and fractional values; TopK rounds them. Rows all count 1 / B."""
    coder = random_coder(architecture, fields)
    rows, sparsity = random_rows(coder), coder.config.sparsity * factor
    expected = Oracle(coder, rows, sparsity).expected()
    found = coder.objective(rows, sparsity, DenseOps())
    assert_close(found.loss.detach(), expected.loss)
    assert_close(found.latents.dense().detach(), expected.codes)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("sparsity", [0.01, 1, 2.4, 4.6, F, F + 5, 3 * F])
def test_k_may_be_anything_above_zero_while_it_anneals(architecture: str, sparsity: float) -> None:
    """At least 1, rounded, and no more than there is."""
    coder = random_coder(architecture, {"d_in": D, "d_out": D, "prefixes": (0.5, 1.0)})
    rows = random_rows(coder)
    positive = (coder.preactivations(rows.x) > 0).sum(dim=1)
    k, found = max(1, round(sparsity)), coder.objective(rows, sparsity, DenseOps()).latents.l0()
    if architecture == "topk":
        assert found.tolist() == positive.clamp(max=k).tolist()
    else:
        assert found.sum().item() == min(positive.sum().item(), k * B)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_norms_that_rank_get_no_gradient_from_ranking(architecture: str) -> None:
    """Eq. 5 chooses by the norms; a latent that nobody used has a decoder gradient of exactly zero."""
    coder = random_coder(architecture, {"d_in": D, "d_out": D, "selection": "decoder_norm", "decoder_norm": "free"})
    found = coder.objective(random_rows(coder), 1, DenseOps())
    found.loss.backward()
    unused = found.latents.firings() == 0
    assert 0 < unused.sum() < F
    assert coder.W_dec.grad is not None
    assert coder.W_dec.grad[unused].count_nonzero() == 0


@every_option
def test_loss_and_codes_follow_the_coders_precision(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    rows = random_rows(coder)
    for dtype in (torch.float64, torch.float32):
        these = Rows(rows.x.to(dtype), rows.y.to(dtype), rows.weights.to(dtype), rows.dead)
        found = coder.to(dtype).objective(these, coder.config.sparsity, DenseOps())
        assert found.loss.dtype == found.y_hat.dtype == found.latents.values.dtype == dtype


def gradients(architecture: str, fields: dict[str, Any], rows_of: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    coder = random_coder(architecture, {"d_in": D, "d_out": D, "decoder_norm": "free"} | fields)
    loss = coder.objective(random_rows(coder, **rows_of), coder.config.sparsity, DenseOps()).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in coder.named_parameters()}


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("legacy", [False, True])
class TestAuxK:
    """What the auxiliary loss may touch (Gao et al., A.2)."""

    def fields(self, legacy: bool) -> dict[str, Any]:
        return AUXK | {"auxk_bias": legacy, "prefixes": (0.5, 1.0)}

    def test_it_is_not_there_where_none_is_dead(self, architecture: str, legacy: bool) -> None:
        with_it = gradients(architecture, self.fields(legacy), {"dead": ()})
        without = gradients(architecture, {"prefixes": (0.5, 1.0)}, {"dead": ()})
        assert with_it[0] == without[0]
        assert all(with_it[1][name].equal(gradient) for name, gradient in without[1].items())

    def test_it_moves_dead_latents_only(self, architecture: str, legacy: bool) -> None:
        """The main path would be moved through the error; it is not, so living latents learn as without AuxK.

        A latent that was dead before the batch and is active in it counts as living.
        """
        few = {"sparsity": 1}
        with_it = gradients(architecture, self.fields(legacy) | few, {"dead": tuple(range(F))})
        without = gradients(architecture, {"prefixes": (0.5, 1.0)} | few, {"dead": ()})
        assert with_it[0] > without[0]
        coder = random_coder(architecture, {"d_in": D, "d_out": D, "decoder_norm": "free"} | self.fields(legacy) | few)
        rows = random_rows(coder, dead=tuple(range(F)))
        woken = coder.objective(rows, 1, DenseOps()).latents.firings() > 0
        living = woken.nonzero().flatten().tolist()
        dead = [f for f in range(F) if f not in living]
        assert 0 < len(dead) < F
        for name in ("W_enc", "b_enc", "W_dec"):
            found, main = with_it[1][name], without[1][name]
            assert_close(found[living], main[living])
            assert (found[list(dead)] - main[list(dead)]).abs().max() > 1e-3
        moved = (with_it[1]["b_dec"] - without[1]["b_dec"]).abs().max()
        assert moved > 1e-3 if legacy else moved < 1e-12

    def test_a_batch_whose_error_does_not_vary_has_none(self, architecture: str, legacy: bool) -> None:
        """One row: no variance, no share of it. With a legacy variance within rows, rows of one number each."""
        fields = {"d_in": 1, "d_out": 1, "decoder_norm": "free"} | AUXK | {"auxk_bias": legacy, "prefixes": (0.5, 1.0)}
        coder = random_coder(architecture, fields)
        x = torch.tensor([[30.0]]).double()
        for dead in (torch.zeros(F, dtype=torch.bool), torch.ones(F, dtype=torch.bool)):
            loss = coder.objective(Rows.mean(x, x, dead), 3, DenseOps()).loss
            loss.backward()
            assert loss.isfinite()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in coder.parameters())


def test_the_gate_learns_nothing_from_the_main_reconstruction() -> None:
    """With no penalty and a decoder that cannot reconstruct from the gate, only the auxiliary loss is left for b_enc.

    Frozen base and gate: at y = what the gate gives, its loss is 0 and stationary, so b_enc's gradient is 0 though the
    main reconstruction is far off.
    """
    coder = random_coder("gated", {"d_in": D, "d_out": D, "decoder_norm": "free"})
    x = random_rows(coder).x
    with torch.no_grad():
        from_gate = coder.preactivations(x).clamp(min=0) @ coder.W_dec + coder.b_dec
    found = coder.objective(Rows.mean(x, from_gate), 0.0, DenseOps())
    found.loss.backward()
    assert found.loss.item() > 0.1
    assert coder.b_enc.grad is not None
    assert coder.b_enc.grad.abs().max() < 1e-12
    for name in ("r_mag", "b_mag", "W_enc", "W_dec", "b_dec"):
        gradient = coder.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() > 1e-3


def test_the_decoder_learns_nothing_from_the_auxiliary_reconstruction() -> None:
    """Where the main reconstruction is exact, the decoder and b_dec have no gradient though the gate's is far off."""
    coder = random_coder("gated", {"d_in": D, "d_out": D + 3, "encoder_init": "own", "skip": True})
    x = random_rows(coder).x
    with torch.no_grad():
        y = coder.decode(coder.encode(x), x)
    found = coder.objective(Rows.mean(x, y), 0.0, DenseOps())
    found.loss.backward()
    assert found.loss.item() > 0.1
    for name in ("W_dec", "b_dec", "W_skip", "r_mag", "b_mag"):
        gradient = coder.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() < 1e-12
    assert coder.W_enc.grad is not None
    assert coder.W_enc.grad.abs().max() > 1e-3
