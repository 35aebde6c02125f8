"""A language model on paper: all that a plan asks of one."""

from typing import Any, cast

import torch

from panscope.lms.model import LanguageModel
from panscope.suite.plan import Plan, SuiteConfig, plan
from panscope.types import Site, UserError

LAYERS, WIDE, HEADS = 4, 32, 48


class PaperLm:
    """Four blocks, 32 wide, heads together 48 wide, 512 positions, 16 GiB of memory."""

    n_layers = LAYERS
    context = 512
    dtype = torch.float32

    def memory_bytes(self) -> int:
        return 16 << 30

    def width(self, site: Site) -> int:
        if site.layer >= LAYERS:
            raise UserError(f"layer {site.layer} does not exist")
        return HEADS if site.kind == "attn_z" else WIDE


def suite(*tables: dict[str, Any], **fields: Any) -> SuiteConfig:
    return SuiteConfig.read({"tokens": 256_000, "coders": tables} | fields, "test")


def planned(*tables: dict[str, Any], lm: Any = None, **fields: Any) -> Plan:
    """The plan of a suite of these `[[coders]]` tables."""
    return plan(suite(*tables, **fields), cast(LanguageModel, lm or PaperLm()))
