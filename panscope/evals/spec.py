"""The definition of an evaluation: how much text, which subsets, which tokens are replaced."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import Field

from panscope.config import Config
from panscope.evals.passes import Splice
from panscope.evals.predictions import LossMask
from panscope.types import read_fraction


class EvalConfig(Config):
    """The [eval] table of a suite file."""

    tokens: int = Field(default=100_000, gt=0)
    """Content tokens to evaluate on: it stops after the batch that reaches them, or at the end of the text."""
    precision: float | None = Field(default=None, gt=0)
    """The widest half of a 95 % interval that is accepted, of fvu and of delta_loss (nats); left out, any."""
    probes: int = Field(default=256, ge=0)
    """Sequences in which the uniformity of active latents is measured, one token each; 0 leaves it out."""
    metrics: tuple[str, ...] = ()
    """Metrics of other packages (docs/extending.md) that are measured too."""


@dataclass(frozen=True)
class EvalShard:
    """One of `of` parts, the n-th counted from 0: of an evaluation's batches every `of`-th, or of a suite's coders."""

    number: int = 0
    """Which of them, from 0."""
    of: int = 1
    """How many there are."""

    def __contains__(self, batch: int) -> bool:
        return batch % self.of == self.number

    def __str__(self) -> str:
        return f"{self.number + 1}/{self.of}"

    @classmethod
    def parse(cls, text: str, field: str = "part") -> "EvalShard":
        """Read `2/8`: the second of eight; raises UserError, which names the `field`, on anything else."""
        number, of = read_fraction(text, field)
        return cls(number - 1, of)


WHOLE_TEXT = EvalShard()
"""All of it."""


def one_subset(document: int) -> int:
    """Every document is of the only one."""
    return 0


@dataclass(frozen=True)
class EvalSpec:
    """How the text is evaluated."""

    tokens: int | None = None
    """Content tokens to measure at least; None for all of the text."""
    subsets: tuple[str, ...] = ("",)
    """The names of the text's subsets; with more than one, every number is given for each of them too."""
    subset_of: Callable[[int], int] = one_subset
    """Which of them a document, given by its number, belongs to."""
    splice: Splice = "content"
    """Which tokens are replaced by reconstructions, zeros and means."""
    loss_mask: LossMask = "target"
    """Which token must be content for a prediction to count."""
    probes: int = 0
    """Sequences in which the uniformity of active latents is measured."""
    metrics: tuple[str, ...] = ()
    """Metrics of other packages, beside all built-in ones."""
    saebench: bool = False
    """Whether the sums of SAEBench's own definitions are taken."""
    interventions_per_pass: int = 1
    """How many altered passes of one site make one pass of the model at most."""
    share: EvalShard = WHOLE_TEXT
    """The batches that this process measures."""

    def subsets_of(self, documents: list[int]) -> Iterator[int]:
        """The subset of each document; padding, which is of no document, counts to the first."""
        return (self.subset_of(document) if document >= 0 else 0 for document in documents)
