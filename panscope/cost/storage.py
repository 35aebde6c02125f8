"""Compares the cost of storing activations with that of running the language model again.

Gemma Scope (section 3.3.2) stored all activations in 32 bits and found that storing them for 10 to 100 days is at least
ten times cheaper than another pass of the language model for each coder. That depends on the ratio of the prices of
storage and accelerators, so both are parameters here; the result is the number of days at which the costs are equal.
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
    """Prices for the comparison, in US dollars."""

    gpu_hour: float = Field(default=2.5, gt=0)
    """Dollars per accelerator-hour; 2.50 is a rented H100 in 2025 (offers range from 1.90 to 2.94)."""
    tib_month: float = Field(default=23.55, gt=0)
    """Dollars per TiB and 30 days; 23.55 is a standard cloud object store at 0.023 per GiB."""


@dataclass(frozen=True)
class StorageChoice:
    """The costs of storing the activations of some sites and of generating them again."""

    bytes: int
    """Size of the stored activations."""
    regenerate: float
    """Accelerator-hours of one pass of the language model over all tokens, to the deepest of the sites."""
    day: float
    """Cost of one day of storage, in accelerator-hours."""

    @property
    def even_days(self) -> float:
        """Days of storage that cost as much as generating the activations once."""
        return self.regenerate / self.day

    def reuses(self, days: float) -> int:
        """Additional uses within `days` that make storing cheaper; the first use needs a pass in either case."""
        return max(1, math.ceil(days / self.even_days))

    def rule_holds(self, days: float) -> bool:
        """Gemma Scope's rule: storing for `days` is at least ten times cheaper than generating again."""
        return self.even_days >= GEMMA_SCOPE_FACTOR * days

    def price_of_rule(self, days: float, prices: Prices) -> float:
        """The highest price per TiB and month, in dollars, at which the rule holds for `days`."""
        return prices.tib_month * self.even_days / (GEMMA_SCOPE_FACTOR * days)


def site_bytes(plan: Plan, facts: ModelFacts, value_bytes: int) -> dict[Site, int]:
    """Bytes of each site's activations: tokens x dimension x `value_bytes`, for the longest training on the site."""
    return {
        site: value_bytes
        * facts.width(site)
        * plan.batch
        * max(coder.steps for coder in plan.coders if site in coder.wiring.sites())
        for site in plan.sites()
    }


def store_everything(plan: Plan, facts: ModelFacts, gpu: Gpu, prices: Prices) -> StorageChoice:
    """Cost of storing all sites of the suite in float32; one pass of the language model generates all of them."""
    stored = sum(site_bytes(plan, facts, 4).values())
    return _choice(stored, lm_flops(plan, facts), gpu, plan, prices)


def store_one(plan: Plan, facts: ModelFacts, coder: PlannedCoder, gpu: Gpu, *, prices: Prices) -> StorageChoice:
    """Cost of storing one coder's sites in float32, for training that coder again without the rest of the suite."""
    dimension = sum(facts.width(site) for site in coder.wiring.sites())
    return _choice(
        4 * dimension * plan.batch * coder.steps, pass_flops(plan, facts, [coder], coder.steps), gpu, plan, prices
    )


def example(plan: Plan) -> PlannedCoder:
    """A coder from the middle of the model, of the residual stream if there is one."""
    resid = [coder for coder in plan.coders if any(site.kind == "resid_post" for site in coder.wiring.sites())]
    ordered = sorted(resid or plan.coders, key=lambda coder: max(coder.wiring.sites()))
    return ordered[len(ordered) // 2]


def _choice(stored: int, flops: float, gpu: Gpu, plan: Plan, prices: Prices) -> StorageChoice:
    hours = flops / (UTILISATION * gpu.flops(plan.suite.model.dtype)) / 3600
    day = stored / TIB * prices.tib_month / _DAYS_OF_A_MONTH / prices.gpu_hour
    return StorageChoice(stored, hours, day)
