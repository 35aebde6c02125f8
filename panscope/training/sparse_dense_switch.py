"""Whether a step is sparse or dense: sparse while few codes are active, dense while many are, as measured.

Early JumpReLU and ReLU coders have half of all latents active; gathering that many rows costs more than the dense
products. Both compute the same numbers, so a switch changes rounding only.
"""

from collections.abc import Callable
from typing import Any

from panscope.kernels.backend import Kernels
from panscope.ops.base import TooDense
from panscope.ops.dense import DenseOps
from panscope.ops.sparse import MAX_ACTIVE_FRACTION, SparseOps
from panscope.training.accumulation import StepSums

_BACK = MAX_ACTIVE_FRACTION / 2
"""The share of active places below which a dense trainer tries sparse steps again."""


class SparseDenseSwitch:
    """How one coder's objective is computed; without `kernels` always by the reference."""

    def __init__(self, kernels: Kernels | None) -> None:
        self._sparse = None if kernels is None else SparseOps(kernels, MAX_ACTIVE_FRACTION)
        self._dense = DenseOps()
        self._dense_now = False
        self._name = "reference" if kernels is None else "sparse"

    @property
    def sparse(self) -> SparseOps | None:
        """The sparse verbs of the step under way; None where the step is dense."""
        return None if self._dense_now else self._sparse

    @property
    def name(self) -> str:
        """How the last step went."""
        return self._name

    def accumulate(self, compute: Callable[[SparseOps | DenseOps], StepSums]) -> StepSums:
        """What `compute` accumulates with sparse kernels if possible; it begins anew where they turn out not to pay."""
        if self._sparse is not None and not self._dense_now:
            self._sparse.begin()
            try:
                return compute(self._sparse)
            except TooDense:
                self._dense_now = True
        self._dense.begin()
        return compute(self._dense)

    def stepped(self) -> None:
        """After the weights have changed: a dense step may have been sparse enough for the next to be."""
        if self._sparse is None:
            return
        self._sparse.begin()  # frees what the step's gradient was made of
        self._name = "dense" if self._dense_now else "sparse"
        if self._dense_now:
            self._sparse.weights_changed()
            self._dense_now = self._dense.active_fraction >= _BACK

    def state_dict(self) -> dict[str, Any]:
        """The present mode: a resumed run continues with it, so that not even rounding differs."""
        return {"dense": self._dense_now}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._dense_now = state["dense"]
        if self._sparse is not None:
            self._sparse.weights_changed()
