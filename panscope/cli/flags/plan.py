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
      panscope plan gemma-scope-2b --share 3/35        what one of 35 parts has and costs

    It ends with the command that trains the suite on that GPU, in shares where it does not fit at once.
    """

    suite: Annotated[str, tyro.conf.Positional, flag("SUITE")]
    """A suite file (.toml) or the name of a built-in suite."""
    wiring: Annotated[str | None, flag("NAME")] = None
    """Only the coders of this wiring: sae, transcoder, multilayer or crosscoder."""
    sites: Annotated[tuple[str, ...] | None, flag("SITE ...")] = None
    """Only the coders of these sites, as the suite has them, such as resid_post or "mlp_in_no_gain -> mlp_out"."""
    layers: Annotated[tuple[str, ...] | None, flag("LAYER ...")] = None
    """Only the coders all of whose layers are named: all, or numbers from 0."""
    widths: Annotated[tuple[int, ...] | None, flag("N ...")] = None
    """Only the coders with so many latents."""
    share: Annotated[str | None, flag("K/N")] = None
    """Only the K-th of N parts of the suite, as `panscope train --share` trains it."""
    gpu: str = "H100"
    """A100-40GB, A100-80GB, H100-SXM, H200, B200, L40S, RTX-4090, RTX-3090, V100-32GB, TPUv3; a unique prefix is
    enough."""
    gpus: int = 1
    """How many of them; the suite is cut into as many shares at least."""
    coders: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """List every coder by name."""
    days: float = 30.0
    """Days that activations would be stored, for the comparison with generating them again."""
