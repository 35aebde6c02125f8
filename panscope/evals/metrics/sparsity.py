"""`l0` and `l1`: how many latents are active on a row, and the sum of their values; means over rows.

l0 counts values > 0 (Gemma Scope section 4.1; a TopK coder may have fewer than K). l1 is in raw units of the codes:
decoder norms do not enter, so it is comparable only between coders whose decoders have the same norm.
"""

import torch

from panscope.evals.metrics.base import Metric, Numbers, Sums, ratio


def _numbers(sums: Sums) -> Numbers:
    return {name: ratio(sums[name], sums["count"]) for name in ("l0", "l1")}


SPARSITY = Metric(
    "rows", {"l0": lambda o: o.latents.l0(), "l1": lambda o: o.latents.l1(torch.float64)}, _numbers, by_position=True
)
