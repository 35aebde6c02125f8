"""The kinds of site: one table of all that is known of each, by every part of the package.

A kind names a tensor of a block: the input or output of one of its modules. `mlp_in` is what the MLP gets: normalised,
with the norm's gain (and bias). `mlp_in_no_gain` is the same without gain and bias; it is no tensor of the model's, see
`lms/norms.py`.
"""

from dataclasses import dataclass
from typing import Literal

End = Literal["input", "output"]


@dataclass(frozen=True)
class SiteKind:
    """One kind of site."""

    letter: str
    """In the names of coders."""
    label: str
    """In figures and tables."""
    meaning: str
    """In sentences."""
    lens_name: str
    """TransformerLens' hook, after `blocks.3.`."""
    field: str
    """The field of `lms.families.ModelFamily` that names the module; empty for the block itself."""
    end: End
    """Whether the site is that module's input or its output."""
    order: int
    """When a block comes to it."""
    part: Literal["attention", "mlp", "block"]
    """Within what it is: it need not be computed where the output of that is known."""
    heads_wide: bool = False
    """True: as wide as all heads together, `n_heads * head_dim`; False: as wide as, and in, the residual stream."""
    no_gain: bool = False
    """True: the module is a norm, and the site is its output as it is before gain and bias."""

    def module(self, family: object) -> str:
        """The path of the module from the block, in a model of this family."""
        return getattr(family, self.field) if self.field else ""


KINDS = {
    "resid_post": SiteKind(
        "R", "residual stream", "the residual stream after the block", "hook_resid_post", "", "output", 5, "block"
    ),
    "attn_z": SiteKind(
        "Z", "attention heads", "the attention heads before W_O", "attn.hook_z", "w_o", "input", 0, "attention",
        heads_wide=True,
    ),
    "attn_out": SiteKind(
        "A", "attention output", "the attention output", "hook_attn_out", "attn_end", "output", 1, "attention"
    ),
    "mlp_out": SiteKind("M", "MLP output", "the MLP output", "hook_mlp_out", "mlp_end", "output", 4, "mlp"),
    "mlp_in": SiteKind("I", "MLP input", "the MLP input", "mlp.hook_in", "mlp", "input", 3, "mlp"),
    "mlp_in_no_gain": SiteKind(
        "N", "MLP input, no gain", "the MLP input without the norm's gain", "ln2.hook_normalized", "mlp_norm", "output",
        2, "mlp", no_gain=True,
    ),
}  # fmt: skip
"""Every kind by its name, in the field's (TransformerLens) vocabulary, in the order of tables and figures. The MLP's
input with the norm's gain has a hook in TransformerLens' bridge only."""
