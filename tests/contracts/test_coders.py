"""What every architecture promises beside its loss: codes, initial weights, constraints, weights in and out.

The loss and its gradients are in `test_objective.py`; the coders and rows come from `coder_cases.py`.

Shape letters: B rows, D input width, E output width, F latents.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from panscope import coders
from panscope.coders.batchtopk import BatchTopKCoder
from panscope.coders.gated import GatedCoder
from panscope.coders.jumprelu import JumpReLUCoder
from panscope.ops.base import Rows
from panscope.ops.dense import DenseOps
from panscope.types import Latents, UserError
from tests.support.coder_cases import AUXK, D, F, assert_close, config_of, every_shape, random_coder, random_rows

BATCHWIDE = ("batchtopk", "matryoshka")


def test_the_table_builds_what_it_names() -> None:
    for architecture, (config, coder) in coders.ARCHITECTURES.items():
        assert config.model_fields["architecture"].default == architecture
        built = coders.build(config_of(architecture, {"d_in": D, "d_out": D, "prefixes": ()}))
        assert type(built) is coder
        assert type(built.config) is config


@every_shape
def test_encode_gives_the_codes_of_the_objective(architecture: str, fields: dict[str, Any]) -> None:
    """BatchTopK's objective chooses over the batch; with the least value it kept as threshold, `encode` does too."""
    coder = random_coder(architecture, fields)
    rows = random_rows(coder)
    objective = coder.objective(rows, coder.config.sparsity, DenseOps())
    if isinstance(coder, BatchTopKCoder):
        coder.threshold.copy_(objective.latents.values[objective.latents.values > 0].min() * (1 - 1e-9))
    codes = coder.encode(rows.x)
    assert codes.width == F
    assert codes.dense().equal(objective.latents.dense())
    assert codes.values.min() >= 0
    assert_close(coder.decode(codes, rows.x).detach(), objective.y_hat.detach())


@every_shape
def test_decode_takes_dense_and_sparse_codes_alike(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    w, x = coder.tensors(), random_rows(coder).x[:2]
    values, indices = torch.tensor([[2.0, 0.5], [0.0, 1.0]]).double(), torch.tensor([[3, 0], [9, 1]])
    by_hand = torch.stack([2.0 * w["W_dec"][3] + 0.5 * w["W_dec"][0], 1.0 * w["W_dec"][1]]) + w["b_dec"]
    if coder.config.skip:
        by_hand = by_hand + torch.stack([w["W_skip"] @ row for row in x])
    sparse = Latents(values, F, indices)
    assert_close(coder.decode(sparse, x).detach(), by_hand)
    assert_close(coder.decode(Latents(sparse.dense(), F), x).detach(), by_hand)


@every_shape
@pytest.mark.parametrize("norm", [1.0, 0.25])
def test_initial_weights(architecture: str, fields: dict[str, Any], norm: float) -> None:
    if norm != 1 and fields["decoder_norm"] == "unit":
        with pytest.raises(UserError, match="decoder_init_norm"):
            config_of(architecture, fields | {"decoder_init_norm": norm})
        return
    coder = coders.build(config_of(architecture, fields | {"decoder_init_norm": norm}))
    with torch.no_grad():
        for parameter in (coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec):
            parameter.fill_(7.0)
    assert coder.initialise(torch.Generator().manual_seed(5)) is coder
    # A float32 vector of 6 to 18 numbers is normalised to a few ulps.
    assert torch.allclose(coder.W_dec.norm(dim=1), torch.full((F,), norm), rtol=1e-6)
    assert torch.allclose(coder.W_enc.norm(dim=1), torch.full((F,), norm), rtol=1e-6)
    others = coder.tensors().keys() - {"W_enc", "W_dec", "threshold"}
    assert all(coder.get_parameter(name).count_nonzero() == 0 for name in others)
    if coder.config.encoder_init == "transpose":
        assert coder.W_enc.equal(coder.W_dec)
    else:
        cosines = coder.W_enc[:, :D] @ coder.W_dec[:, :D].T / norm**2
        assert cosines.diagonal().abs().max() < 0.99
    directions = coder.W_dec / norm
    assert (directions @ directions.T - torch.eye(F)).abs().max() < 0.99


@pytest.mark.parametrize("architecture", coders.ARCHITECTURES)
@pytest.mark.parametrize("extra", [{}, {"decoder_norm": "free", "decoder_init_norm": 0.1}, {"pre_encoder_bias": True}])
def test_a_matched_encoder_gives_random_unit_vectors_the_norm_one(architecture: str, extra: dict[str, Any]) -> None:
    """Gao et al. On other vectors than the 256 it was matched on, whose mean is known to about 1 %.

    JumpReLU is not linear in W_enc near its jump: here, with a threshold far below the values, nearly so.
    """
    auxk = AUXK if "topk" in architecture else {}
    fields = {"d_in": 64, "d_out": 64, "width": 256, "sparsity": 4, "encoder_init": "transpose_matched"} | auxk | extra
    coder = coders.build(coders.config_type(architecture).read(fields, "test"))
    coder.initialise(torch.Generator().manual_seed(5))
    x = torch.nn.functional.normalize(torch.randn(2000, 64, generator=torch.Generator().manual_seed(6)), dim=1)
    y_hat = coder.objective(Rows.mean(x, x, torch.zeros(256, dtype=torch.bool)), 4, DenseOps()).y_hat
    assert abs(y_hat.norm(dim=1).mean().item() - 1) < 0.05
    cosines = torch.nn.functional.cosine_similarity(coder.W_enc, coder.W_dec, dim=1)
    assert torch.allclose(cosines, torch.ones(256))


def test_both_paths_of_a_gated_coder_start_alike() -> None:
    coder = random_coder("gated", {"d_in": D, "d_out": D}).float().initialise(torch.Generator().manual_seed(0))
    assert isinstance(coder, GatedCoder)
    x = torch.randn(9, D)
    assert torch.allclose(coder.encode(x).values, coder.preactivations(x).relu())


@every_shape
def test_initial_weights_come_from_the_generator_alone(architecture: str, fields: dict[str, Any]) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.seed())
        return coders.build(config_of(architecture, fields)).initialise(torch.Generator().manual_seed(seed)).tensors()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(first[name].equal(again[name]) for name in first)
    assert not first["W_dec"].equal(other["W_dec"])


@every_shape
def test_tensors_go_round(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields).float()
    stored = coder.tensors()
    fresh = coders.build(coder.config)
    assert fresh.load_tensors(stored) is fresh
    found = fresh.tensors()
    assert found.keys() == stored.keys()
    assert all(found[name].equal(stored[name]) for name in stored)


@every_shape
def test_tensors_are_copies(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    before, given = coder.tensors(), coder.tensors()
    for tensor in given.values():
        tensor.fill_(3.0)
        assert not tensor.requires_grad
    assert all(tensor.equal(before[name]) for name, tensor in coder.tensors().items())
    fresh = coders.build(coder.config).double().load_tensors(before)
    before["W_enc"].fill_(3.0)
    assert fresh.W_enc.equal(coder.W_enc)


@pytest.mark.parametrize("architecture", coders.ARCHITECTURES)
@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_weights_of_another_shape_are_refused(architecture: str, name: str) -> None:
    """Also those that could be stretched to fit."""
    coder = random_coder(architecture, {"d_in": D, "d_out": D, "prefixes": ()})
    stored = coder.tensors()
    stored[name] = stored[name][:1]
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        coders.build(coder.config).load_tensors(stored)


@every_shape
def test_state_dict_goes_round(architecture: str, fields: dict[str, Any]) -> None:
    coder, other = random_coder(architecture, fields), random_coder(architecture, fields, seed=9)
    other.load_state_dict(coder.state_dict())
    x = random_rows(coder).x
    assert other.encode(x).dense().equal(coder.encode(x).dense())


@every_shape
def test_the_constraint_brings_vectors_to_norm_one_only_where_asked(architecture: str, fields: dict[str, Any]) -> None:
    coder = random_coder(architecture, fields)
    with torch.no_grad():
        coder.W_dec.mul_(1.5)
        coder.W_dec[0].zero_()
    before = coder.tensors()
    coder.constrain()
    after, norms = coder.tensors(), before["W_dec"].square().sum(dim=1, keepdim=True).sqrt()
    expected = before["W_dec"]
    if coder.config.decoder_norm == "unit":
        expected = torch.where(norms > 0, before["W_dec"] / norms, 0.0)
    assert_close(after["W_dec"], expected)
    assert all(after[name].equal(before[name]) for name in after if name != "W_dec")


def test_the_constraint_keeps_thresholds_above_zero() -> None:
    coder = random_coder("jumprelu", {"d_in": D, "d_out": D})
    assert isinstance(coder, JumpReLUCoder)
    with torch.no_grad():
        coder.threshold[:2] = torch.tensor([-0.3, 0.0]).double()
    before = coder.tensors()["threshold"]
    coder.constrain()
    assert (coder.threshold[:2] > 0).all()
    assert (coder.threshold[:2] < 1e-30).all()
    assert coder.threshold[2:].equal(before[2:])


@every_shape
def test_a_small_step_along_the_projected_gradient_keeps_unit_norms(architecture: str, fields: dict[str, Any]) -> None:
    """The squared norm of w + h g is 1 + h^2 |g|^2 where g is orthogonal to w; a free decoder's gradient stays."""
    coder = random_coder(architecture, fields)
    coder.objective(random_rows(coder), coder.config.sparsity, DenseOps()).loss.backward()
    assert coder.W_dec.grad is not None
    before = coder.W_dec.grad.clone()
    others = {name: p.grad.clone() for name, p in coder.named_parameters() if p.grad is not None and name != "W_dec"}
    coder.project_gradient()
    after, directions = coder.W_dec.grad, coder.W_dec.detach()
    if coder.config.decoder_norm == "free":
        assert after.equal(before)
    else:
        assert_close((after * directions).sum(dim=1), torch.zeros(F).double())
        assert_close(after - before, -directions * torch.einsum("fe,fe->f", before, directions)[:, None])
        assert (after - before).abs().max() > 1e-3
    assert all(coder.get_parameter(name).grad.equal(gradient) for name, gradient in others.items())  # type: ignore[union-attr]


def track(coder: BatchTopKCoder, pre: list[list[float]], k: int) -> float:
    """One step on rows whose pre-activations are `pre` (W_enc is the identity), and the threshold after it."""
    x = torch.tensor(pre, dtype=torch.float64)
    coder.track(coder.objective(Rows.mean(x, x), k, DenseOps()).least)
    return coder.threshold.item()


@pytest.mark.parametrize("architecture", BATCHWIDE)
class TestRunningThreshold:
    """BatchTopK's threshold, by hand: a window of 4 moves it a quarter of the way."""

    def coder(self, architecture: str, **fields: Any) -> BatchTopKCoder:
        base = {"d_in": 3, "d_out": 3, "width": 3, "sparsity": 1, "threshold_window": 4, "prefixes": (1.0,)}
        coder = coders.build(coders.config_type(architecture).read(base | fields, "test")).double()
        assert isinstance(coder, BatchTopKCoder)
        with torch.no_grad():
            coder.W_enc.copy_(torch.eye(3))
            coder.W_dec.copy_(torch.eye(3))
        return coder

    def test_the_first_batch_sets_it_and_later_ones_move_it(self, architecture: str) -> None:
        coder = self.coder(architecture)
        assert coder.threshold.item() == 0
        # Two rows, one latent each on average: 9 and 8 are kept, so the least is 8; row 2 keeps none.
        assert track(coder, [[9.0, 8.0, 1.0], [2.0, -1.0, 0.0]], 1) == 8.0
        # Kept: 5 and 4; 8 + (4 - 8) / 4 = 7.
        assert track(coder, [[5.0, 1.0, 0.0], [4.0, 3.0, 0.0]], 1) == 7.0
        # Fewer positive than asked for: the least positive one, 3; 7 + (3 - 7) / 4 = 6.
        assert track(coder, [[3.0, -1.0, -2.0], [-1.0, -1.0, -1.0]], 2) == 6.0

    def test_a_batch_with_nothing_positive_leaves_it(self, architecture: str) -> None:
        coder = self.coder(architecture)
        assert track(coder, [[-1.0, 0.0, -2.0]], 1) == 0
        assert track(coder, [[0.0, 6.0, -2.0]], 1) == 6.0
        assert track(coder, [[-1.0, 0.0, -2.0]], 1) == 6.0

    def test_encode_cuts_strictly_above_it_row_by_row(self, architecture: str) -> None:
        coder = self.coder(architecture)
        coder.threshold.fill_(2.0)
        x = torch.tensor([[2.0, 2.5, 1.9], [-3.0, 7.0, 8.0]]).double()
        assert coder.encode(x).dense().tolist() == [[0.0, 2.5, 0.0], [0.0, 7.0, 8.0]]
        assert coder.encode(x[:1]).dense().tolist() == [[0.0, 2.5, 0.0]]

    def test_before_the_first_step_encode_is_relu(self, architecture: str) -> None:
        x = torch.tensor([[0.1, -2.5, 0.0]]).double()
        assert self.coder(architecture).encode(x).dense().tolist() == [[pytest.approx(0.1), 0.0, 0.0]]

    def test_ranked_by_norm_it_is_a_score(self, architecture: str) -> None:
        """Norms 1, 2 and 4: the scores of 6 3 1 are 6 6 4; K = 2 of one row keeps 6 and 6, K = 3 all; the least score
        4 is met by latent 2 at 1, by latent 0 at 4."""
        coder = self.coder(architecture, selection="decoder_norm", decoder_norm="free")
        with torch.no_grad():
            coder.W_dec.mul_(torch.tensor([[1.0], [2.0], [4.0]]))
        assert track(coder, [[6.0, 3.0, 1.0]], 3) == 4.0
        assert coder.thresholds().tolist() == [4.0, 2.0, 1.0]
        codes = coder.encode(torch.tensor([[4.5, 1.5, 1.5]]).double()).dense().tolist()
        assert codes == [[4.5, 0.0, 1.5]]

    def test_it_carries_no_gradient_and_travels_with_the_weights(self, architecture: str) -> None:
        coder = self.coder(architecture)
        assert track(coder, [[9.0, 8.0, 1.0]], 1) == 9.0
        assert not coder.threshold.requires_grad
        assert "threshold" not in dict(coder.named_parameters())
        assert self.coder(architecture).load_tensors(coder.tensors()).threshold.item() == 9.0
