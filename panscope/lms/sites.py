"""The kinds of site: for each, the module of the block that it belongs to, and whether it is its input or its output.

One line a kind. `mlp_in` is what the MLP gets: normalised, with the norm's gain (and bias). `mlp_in_no_gain` is the
same without gain and bias; it is no tensor of the model's, see `norms.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from panscope.lms.families import ModelFamily

End = Literal["input", "output"]


@dataclass(frozen=True)
class SiteKind:
    """The tensor that a kind of site names."""

    module: Callable[[ModelFamily], str]
    """The path of the module from the block."""
    end: End
    """Whether the site is that module's input or its output."""
    heads_wide: bool = False
    """True: as wide as all heads together, `n_heads * head_dim`; False: as wide as the residual stream."""
    no_gain: bool = False
    """True: the module is a norm, and the site is its output as it is before gain and bias."""


KINDS = {
    "resid_post": SiteKind(lambda family: "", "output"),
    "attn_z": SiteKind(lambda family: family.w_o, "input", heads_wide=True),
    "attn_out": SiteKind(lambda family: family.attn_end, "output"),
    "mlp_out": SiteKind(lambda family: family.mlp_end, "output"),
    "mlp_in": SiteKind(lambda family: family.mlp, "input"),
    "mlp_in_no_gain": SiteKind(lambda family: family.mlp_norm, "output", no_gain=True),
}
"""Every kind of `panscope.types.SITE_KINDS`; the empty path is the block itself."""
