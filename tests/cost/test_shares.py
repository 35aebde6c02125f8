"""Shares of a suite: every coder is in exactly one, sites stay together, and no share costs much more than another."""

from typing import Any

import pytest

from panscope import builtin
from panscope.config import read_toml
from panscope.cost.gpus import gpu_named
from panscope.cost.memory import estimate_memory
from panscope.cost.shares import cut, fitting, plan_share
from panscope.lms.facts import facts_of
from panscope.planning.plan import Plan, SuiteConfig, plan
from panscope.types import UserError
from tests.support.paper_lm import PAPER_LM, planned

TABLES: list[dict[str, Any]] = [
    {"sites": ["resid_post", "mlp_out"], "layers": "all", "width": 64, "sparsity": [2, 4, 8]},
    {"wiring": "transcoder", "layers": "all", "width": 128, "sparsity": 4},
    {"wiring": "multilayer", "layers": "all", "width": 64, "sparsity": 4},
]


def names(found: Plan) -> list[str]:
    return [coder.name for coder in found.coders]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 29])
def test_every_coder_is_in_exactly_one_share(count: int):
    whole = planned(*TABLES)
    shares = cut(whole, PAPER_LM, count)
    assert len(shares) == count and all(share.coders for share in shares)
    assert sorted(name for share in shares for name in names(share)) == sorted(names(whole))
    for share in shares:
        assert (share.batch, share.buffer_rows, share.log_every) == (whole.batch, whole.buffer_rows, whole.log_every)
        assert share.checkpoint_every == whole.checkpoint_every


def test_the_cut_is_the_same_on_every_machine():
    """It depends on the suite alone, not on this device's memory."""
    small, large = (planned(*TABLES, memory=memory) for memory in (1 << 30, 1 << 36))
    assert [names(share) for share in cut(small, PAPER_LM, 5)] == [names(share) for share in cut(large, PAPER_LM, 5)]


def test_a_share_stops_at_its_deepest_layer():
    """Coders of neighbouring layers go together, so that passes of the language model end early in most shares."""
    tables = {"sites": ["resid_post"], "layers": "all", "width": 64, "sparsity": [2, 4, 8]}
    deepest = [max(site.layer for site in share.sites()) for share in cut(planned(tables), PAPER_LM, 4)]
    assert deepest == [0, 1, 2, 3]


def test_more_shares_than_coders_are_refused():
    with pytest.raises(UserError, match="30 shares are more than the 29 coders of suite, and each share needs one"):
        cut(planned(*TABLES), PAPER_LM, 30)


def test_a_suite_names_its_share():
    suite = SuiteConfig.read({"tokens": 256_000, "coders": TABLES, "share": "2/3"}, "test")
    whole = planned(*TABLES)
    assert names(plan_share(suite, PAPER_LM, 1 << 34)) == names(cut(whole, PAPER_LM, 3)[1])
    for wrong in ("4/3", "0/3", "x", "1/0"):
        with pytest.raises(UserError, match="2/8"):
            SuiteConfig.read({"tokens": 256_000, "coders": TABLES, "share": wrong}, "test")


@pytest.mark.parametrize("name", ["gemma-scope-2b", "llama-scope-8b"])
def test_the_papers_suites_are_cut_to_what_fits_a_gpu(name: str):
    suite = SuiteConfig.read(read_toml(builtin.SUITES / f"{name}.toml"), name)
    facts, gpu = facts_of(suite.model), gpu_named("H200")
    whole = plan(suite, facts, gpu.memory_bytes)
    shares = fitting(whole, facts, gpu)
    assert len(shares) > 1
    assert sorted(coder for share in shares for coder in names(share)) == sorted(names(whole))
    for share in shares:
        assert estimate_memory(share, facts, lambda _: None).total <= 0.9 * gpu.memory_bytes
