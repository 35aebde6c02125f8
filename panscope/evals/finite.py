"""The check that numbers are numbers: one NaN in a sum would quietly spoil every result."""

from torch import Tensor

from panscope.types import NonFiniteError


def require_finite(values: Tensor, sentence: str) -> None:
    """Raise NonFiniteError with `sentence` if `values` hold NaN or infinity."""
    if not values.isfinite().all():
        raise NonFiniteError(sentence)
