"""A suite that does not fit is refused before anything is made, with what would fit, which then does.

Shape letters: B rows, D width, F latents.
"""

import re

import pytest

from panscope.cost.memory import USABLE, MemoryEstimate, check_memory, estimate_memory
from panscope.kernels.backend import Kernels
from panscope.planning.plan import Plan
from panscope.types import UserError
from tests.support.paper_lm import MEMORY, PAPER_LM, WIDE, planned

BATCH = 4096
TABLE = {"architecture": "topk", "sparsity": 8, "sites": ["resid_post"], "layers": "all"}


def reference(_: str) -> Kernels | None:
    return None


def suite_of(width: int) -> Plan:
    return planned(
        TABLE | {"width": width}, train={"batch": BATCH}, tokens=BATCH * 1000, activations={"buffer_rows": BATCH}
    )


def needed(plan: Plan) -> MemoryEstimate:
    return estimate_memory(plan, PAPER_LM, reference)


def test_what_is_counted_by_hand():
    """Four coders of F latents at D = 32: 16 bytes of each parameter, three [B, F] matrices for one step.

    And the rows of four sites in float32, raw and normalised.
    """
    width = 512
    parameters = 2 * WIDE * width + width + WIDE
    found = needed(suite_of(width))
    assert found.kept == (16 * parameters,) * 4
    assert found.working == 3 * 4 * BATCH * width
    assert found.rows == 2 * 4 * BATCH * 4 * WIDE
    assert found.fixed == 4 * PAPER_LM.parameters + BATCH * 4 * 4 * WIDE


def test_what_fits_is_left_alone():
    plan = suite_of(512)
    check_memory(plan, needed(plan), MEMORY)
    check_memory(plan, needed(plan), round(needed(plan).total / USABLE) + 2)


def test_what_does_not_fit_is_said_with_what_would():
    plan = suite_of(4_000_000)
    with pytest.raises(UserError) as caught:
        check_memory(plan, needed(plan), MEMORY)
    said = str(caught.value)
    assert "needs about" in said and "16.0" in said and "of width 4000000" in said and "\n" not in said


def test_the_width_it_names_does_fit():
    plan, memory = suite_of(40_000), round(1.5 * 2**30)
    with pytest.raises(UserError) as caught:
        check_memory(plan, needed(plan), memory)
    match = re.search(r"widths up to (\d+) would fit", str(caught.value))
    assert match is not None
    smaller = suite_of(int(match[1]))
    assert 0 < int(match[1]) < 40_000
    check_memory(smaller, needed(smaller), memory)


def test_a_language_model_that_leaves_no_room():
    plan = suite_of(512)
    with pytest.raises(UserError, match="use a smaller language model"):
        check_memory(plan, needed(plan), 2**20)
