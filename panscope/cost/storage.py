"""Storing activations, or running the language model again: how many bytes, and from when on storing is cheaper.

Gemma Scope (section 3.3.2) stored everything in 32 bits and found storing for 10 to 100 days at least ten times cheaper
than one more pass of the language model for each coder. Whether that holds depends on the price of disk in hours of
accelerator, so both prices are values here, and what comes out is the number of days at which the two cost the same.
"""

import math
from dataclasses import dataclass

from pydantic import Field

from panscope.config import Config
from panscope.cost.flops import lm_flops, pass_flops
from panscope.cost.gpus import Gpu
from panscope.cost.step_time import UTILISATION
from panscope.lms.facts import ModelFacts
from panscope.planning.coder import PlannedCoder
from panscope.planning.plan import Plan
from panscope.types import Site

TIB = 2**40
_DAYS_OF_A_MONTH = 30
GEMMA_SCOPE_DAYS = (10, 100)
GEMMA_SCOPE_FACTOR = 10


class Prices(Config):
    """What the comparison assumes."""

    gpu_hour: float = Field(default=2.5, gt=0)
    """Dollars for an hour of one accelerator; 2.50 is a rented H100 in 2025 (1.90 to 2.94 are asked)."""
    tib_month: float = Field(default=23.55, gt=0)
    """Dollars for 1 TiB over 30 days; 23.55 is a cloud's ordinary object store at 0.023 a GiB."""


@dataclass(frozen=True)
class StorageChoice:
    """Storing some sites' activations against generating them once more."""

    bytes: int
    regenerate: float
    """Accelerator-hours of one pass of the language model over all the tokens, to the deepest of the sites."""
    day: float
    """What a day of storing costs, in accelerator-hours."""

    @property
    def even_days(self) -> float:
        """Storing for this long costs as much as generating once more."""
        return self.regenerate / self.day

    def reuses(self, days: float) -> int:
        """How many more readings within `days` make storing the cheaper choice; the first one generates either way."""
        return max(1, math.ceil(days / self.even_days))

    def rule_holds(self, days: float) -> bool:
        """Gemma Scope's rule: storing for `days` is at least ten times cheaper than generating once more."""
        return self.even_days >= GEMMA_SCOPE_FACTOR * days

    def price_of_rule(self, days: float, prices: Prices) -> float:
        """The greatest price of a TiB and month at which the rule holds for `days`."""
        return prices.tib_month * self.even_days / (GEMMA_SCOPE_FACTOR * days)


def site_bytes(plan: Plan, facts: ModelFacts, value_bytes: int) -> dict[Site, int]:
    """Bytes of each site's activations: tokens x width x bytes of a value, for the longest run that needs the site."""
    return {
        site: value_bytes
        * facts.width(site)
        * plan.batch
        * max(coder.steps for coder in plan.coders if site in coder.wiring.sites())
        for site in plan.sites()
    }


def store_everything(plan: Plan, facts: ModelFacts, gpu: Gpu, prices: Prices) -> StorageChoice:
    """All sites of the suite in 32 bits: one pass feeds all coders, whether its rows are stored or not."""
    stored = sum(site_bytes(plan, facts, 4).values())
    return _choice(stored, lm_flops(plan, facts), gpu, plan, prices)


def store_one(plan: Plan, facts: ModelFacts, coder: PlannedCoder, gpu: Gpu, *, prices: Prices) -> StorageChoice:
    """One coder's sites in 32 bits, for a coder that is trained again alone: it would need a pass of its own."""
    width = sum(facts.width(site) for site in coder.wiring.sites())
    return _choice(
        4 * width * plan.batch * coder.steps, pass_flops(plan, facts, [coder], coder.steps), gpu, plan, prices
    )


def example(plan: Plan) -> PlannedCoder:
    """A coder from the middle of the model, of the residual stream where any is."""
    resid = [coder for coder in plan.coders if any(site.kind == "resid_post" for site in coder.wiring.sites())]
    ordered = sorted(resid or plan.coders, key=lambda coder: max(coder.wiring.sites()))
    return ordered[len(ordered) // 2]


def _choice(stored: int, flops: float, gpu: Gpu, plan: Plan, prices: Prices) -> StorageChoice:
    hours = flops / (UTILISATION * gpu.flops(plan.suite.model.dtype)) / 3600
    day = stored / TIB * prices.tib_month / _DAYS_OF_A_MONTH / prices.gpu_hour
    return StorageChoice(stored, hours, day)
