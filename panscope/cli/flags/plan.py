"""`panscope plan`: which coders a suite has and what they cost, before any weight is downloaded or trained."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from panscope.cli.flags.flag import flag


@dataclass(frozen=True)
class PlanSuite:
    """Say exactly which coders a suite trains, and what that costs; no weights are read.

    For example
      panscope plan gemma-scope-2b                     every coder by kind, compute, memory, disk
      panscope plan suite.toml --gpu A100-80GB --gpus 8
    """

    suite: Annotated[str, tyro.conf.Positional, flag("SUITE")]
    """A suite file (.toml) or the name of a built-in suite."""
    gpu: str = "H100"
    """A100-40GB, A100-80GB, H100-SXM, H200, B200, L40S, RTX-4090, RTX-3090, V100-32GB, TPUv3; a unique prefix is
    enough."""
    gpus: int = 1
    """How many of them."""
    coders: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List every coder by name."""
    days: float = 30.0
    """Days that activations would be stored, for the comparison with generating them again."""
