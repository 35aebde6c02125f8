"""tf32: on for the products of one step and no longer, forward and backward; refused where no units are for it."""

from typing import Any

import pytest
import torch

from panscope import coders
from panscope.coders.wiring import UNIT, Wiring
from panscope.training.coder_trainer import CoderTrainer
from panscope.training.precision import check_precision, forward_in, step_in
from panscope.training.schedule import TrainingConfig
from panscope.types import Site, UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SITE = Site(0, "resid_post")


def now() -> Any:
    return torch.backends.cuda.matmul.fp32_precision


def test_tf32_is_on_within_a_step_and_then_as_it_was():
    before = now()
    with step_in("tf32"):
        assert now() == "tf32"
        with forward_in("tf32", CUDA):
            assert now() == "tf32"
            assert not torch.is_autocast_enabled("cuda")
    assert now() == before != "tf32"


def test_tf32_is_put_back_after_an_error():
    before = now()
    with pytest.raises(ZeroDivisionError), step_in("tf32"):
        raise ZeroDivisionError
    assert now() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_other_precisions_leave_the_switch_alone(precision: Any):
    before = now()
    with step_in(precision):
        assert now() == before


def test_half_precision_is_of_the_forward_pass():
    x = torch.ones(2, 2)
    with forward_in("bfloat16", CPU):
        assert (x @ x).dtype == torch.bfloat16
    with forward_in("float32", CPU):
        assert (x @ x).dtype == torch.float32


def test_tf32_needs_its_units():
    check_precision("tf32", CUDA, "a")
    check_precision("float32", CPU, "a")
    coder = coders.build(
        coders.config_type("topk").read({"d_in": 4, "d_out": 4, "width": 8, "sparsity": 2}, "the coder")
    )
    config = TrainingConfig.read({"precision": "tf32", "normaliser": "none", "learning_rate": 1e-3}, "training")
    wiring = Wiring(wiring="sae", reads=(SITE,), predicts=(SITE,))
    with pytest.raises(UserError, match=r"coder L00: precision 'tf32' is of NVIDIA's matrix units, .* on cpu"):
        CoderTrainer("L00", coder, wiring, UNIT, config, steps=1)
