"""Which kernels a coder gets: what was asked for, or a sentence; and one line that says what and why."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from panscope.kernels import choose
from panscope.kernels.choose import KernelSupport
from panscope.planning.plan import Plan
from panscope.runs import kernel_choice as kernels
from panscope.runs.kernel_choice import choose_kernels, ignored_precision
from panscope.types import UserError
from tests.support.paper_lm import planned

CPU = torch.device("cpu")
SMALL = {"width": 64, "sparsity": 4, "layers": [1], "sites": ["resid_post"], "architecture": "topk"}
LARGE = SMALL | {"width": 65_536, "tag": "wide"}


def plan_of(wanted: str, *tables: dict[str, Any]) -> Plan:
    return planned(*tables, train={"kernels": wanted, "batch": 4096})


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = SimpleNamespace(name="fake", description="fake kernels, two threads")
    monkeypatch.setattr(kernels, "sparse_kernels", lambda device: KernelSupport(fake, fake.description))  # pyright: ignore
    return fake


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "sparse_kernels", lambda device: KernelSupport(None, "numba is not installed"))


def test_the_default_is_auto_and_is_written_out():
    plan = planned(SMALL)
    assert plan.suite.train.kernels == "auto"


def test_reference_is_the_reference(there: Any):
    choice = choose_kernels(plan_of("reference", SMALL, LARGE), CPU)
    assert choice.sparse is None and "reference" in choice.line


def test_sparse_is_sparse_for_all(there: Any):
    plan = plan_of("sparse", SMALL, LARGE)
    choice = choose_kernels(plan, CPU)
    assert all(choice.of(coder.name) is there for coder in plan.coders)
    assert choice.line == "kernels: sparse; fake kernels, two threads"


def test_auto_leaves_small_coders_to_the_reference(there: Any):
    plan = plan_of("auto", SMALL, LARGE)
    choice = choose_kernels(plan, CPU)
    small, large = (coder.name for coder in plan.coders)
    assert choice.of(small) is None and choice.of(large) is there
    assert "sparse for 1 coders, reference for the 1 small ones" in choice.line
    assert "small" in choose_kernels(plan_of("auto", SMALL), CPU).line


def test_auto_says_what_is_missing(missing: None):
    choice = choose_kernels(plan_of("auto", LARGE), CPU)
    assert choice.sparse is None
    assert choice.line == "kernels: reference; no sparse ones on cpu: numba is not installed"


def test_sparse_where_there_is_none_is_refused(missing: None):
    with pytest.raises(UserError, match=r"train\.kernels is 'sparse', but on cpu numba is not installed: install it"):
        choose_kernels(plan_of("sparse", SMALL), CPU)


def test_a_name_that_is_none():
    with pytest.raises(UserError, match="kernels"):
        plan_of("fastest", SMALL)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: None)
    assert choose.sparse_kernels(CPU) == KernelSupport(None, "numba is not installed")
    assert choose.sparse_kernels(torch.device("cuda")) == KernelSupport(None, "triton is not installed")


def test_a_device_without_any():
    assert choose.sparse_kernels(torch.device("meta")) == KernelSupport(
        None, "there are none for devices of type 'meta'"
    )


def test_this_machines_cpu_has_them():
    found = choose.sparse_kernels(CPU)
    assert found.kernels is not None and found.kernels.name == "cpu"
    assert "Numba" in found.detail and "screens" in found.detail


def test_a_precision_that_sparse_kernels_do_not_use_is_said(there: Any):
    plan = plan_of("auto", SMALL | {"precision": "bfloat16"}, LARGE | {"precision": "bfloat16"})
    (line,) = ignored_precision(plan, choose_kernels(plan, CPU))
    assert line == (
        "precision bfloat16 of 1 coder is not used: sparse kernels compute in float32, and take a lower precision only "
        "to find candidates (--kernels reference uses it)"
    )
    plan = plan_of("reference", LARGE | {"precision": "bfloat16"})
    assert ignored_precision(plan, choose_kernels(plan, CPU)) == []
