"""A language model on paper: all that a plan asks of one."""

from typing import Any

from panscope.lms.facts import ModelFacts
from panscope.planning.plan import Plan, SuiteConfig, plan

LAYERS, WIDE, HEADS = 4, 32, 48
MEMORY = 16 << 30
PAPER_LM = ModelFacts(
    name="paper",
    n_layers=LAYERS,
    d_model=WIDE,
    heads_width=HEADS,
    vocabulary=100,
    context=512,
    parameters=60_000,
    matmul_parameters=50_000,
)
"""Four blocks, 32 wide, heads together 48 wide, 512 positions."""


def suite(*tables: dict[str, Any], **fields: Any) -> SuiteConfig:
    return SuiteConfig.read({"tokens": 256_000, "coders": tables} | fields, "test")


def planned(*tables: dict[str, Any], lm: ModelFacts = PAPER_LM, memory: int = MEMORY, **fields: Any) -> Plan:
    """The plan of a suite of these `[[coders]]` tables on a device of so many bytes."""
    return plan(suite(*tables, **fields), lm, memory)
