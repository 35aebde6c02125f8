"""The measured sizes of a model's sites -> the normaliser of each planned coder."""

from panscope.activations.norms import SiteNorms
from panscope.coders.normaliser import PER_ROW, Normaliser, Part, scale_for
from panscope.planning.coder import PlannedCoder
from panscope.types import Site


def normaliser_of(planned: PlannedCoder, norms: dict[Site, SiteNorms]) -> Normaliser:
    """One factor for the input and one for the target; a multilayer coder has one for all its layers together.

    Its rows are then as large, against each other, as they are in the model, and the factor can be folded. A crosscoder
    has one factor a site. Raises UserError where activations are zero or not finite.
    """
    kind, wiring = planned.training.normaliser, planned.wiring
    if wiring.kind.joins_columns:
        parts = tuple(Part(width=len(norms[s].mean), scale=_scale(planned, (s,), norms)) for s in wiring.reads)
        return Normaliser(kind=kind, scale_in=1, scale_out=1, parts=parts)
    scale_in = _scale(planned, wiring.reads, norms)
    own = planned.training.normalise_target_by == "target" and kind not in PER_ROW
    scale_out = _scale(planned, wiring.predicts, norms) if own else scale_in
    return Normaliser(kind=kind, scale_in=scale_in, scale_out=scale_out)


def _scale(planned: PlannedCoder, sites: tuple[Site, ...], norms: dict[Site, SiteNorms]) -> float:
    """From the mean size of the rows of `sites`, which come in equal numbers."""
    seen = [norms[site] for site in sites]
    return scale_for(
        planned.training.normaliser,
        sites[0],
        d=len(seen[0].mean),
        mean_norm=sum(one.mean_norm for one in seen) / len(seen),
        mean_squared_norm=sum(one.mean_squared_norm for one in seen) / len(seen),
    )
