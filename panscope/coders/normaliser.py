"""Fixed scalars that bring activations to a common size, so that learning rates and penalties carry over between sites.

A normaliser stands beside a coder and is never hidden inside it; `transforms` folds it into the weights at the end.
`unit_rms`: E|x|^2 = 1 (Gemma Scope section 3.1). `sqrt_d`: E|x| = sqrt(D) (Llama Scope section 3.3).
`none`: as they come.
"""

import math
from typing import Literal

from pydantic import Field

from panscope.config import Config
from panscope.types import Site, UserError

Kind = Literal["unit_rms", "sqrt_d", "none"]


class Normaliser(Config):
    """What rows are multiplied by before the coder sees them: one factor for its input, one for its target."""

    kind: Kind
    scale_in: float = Field(gt=0)
    scale_out: float = Field(gt=0)


def scale_for(kind: Kind, site: Site, *, d: int, mean_norm: float, mean_squared_norm: float) -> float:
    """The factor that gives rows of `site`, of width d, the size `kind` asks for; UserError where there is none."""
    if kind == "none":
        return 1.0
    size = mean_squared_norm if kind == "unit_rms" else mean_norm
    if not (math.isfinite(size) and size > 0):
        seen = "are all zero" if size == 0 else f"have the size {size}"
        raise UserError(f"activations at {site} {seen} and cannot be normalised: leave this site out")
    return 1 / math.sqrt(size) if kind == "unit_rms" else math.sqrt(d) / size
