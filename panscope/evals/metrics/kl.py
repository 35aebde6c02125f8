"""`kl` and its kin: how far the coder moves the model's predictions, in nats. Unlike delta_loss it cannot cancel.

With p the untouched model's distribution over the vocabulary and q that with the reconstruction in place:

- kl = mean per predicted token of KL(p || q) = sum_v p(v) (log p(v) - log q(v)) (SAEBench, core metrics).
- kl_reverse = mean per predicted token of KL(q || p), the direction of the Multi-Layer SAE's code.
- kl_reverse_per_sequence = the same summed over the tokens of a sequence, mean over sequences: the figure that code
  prints. It grows with the length of a sequence, so it compares only with sequences as long.
- kl_zero_ablated = mean per predicted token of KL(p || q0), with q0 that with 0 at the site.
"""

from panscope.evals.metrics.base import Metric, Numbers, Sums, ratio


def _numbers(sums: Sums) -> Numbers:
    return {
        "kl": ratio(sums["kl"], sums["count"]),
        "kl_reverse": ratio(sums["kl_reverse"], sums["count"]),
        "kl_zero_ablated": ratio(sums["kl_zero_ablated"], sums["count"]),
    }


KL = Metric(
    "predictions",
    {
        "kl": lambda o: o.spliced.kl,
        "kl_reverse": lambda o: o.spliced.kl_reverse,
        "kl_zero_ablated": lambda o: o.zero_ablated.kl,
    },
    _numbers,
    by_position=True,
)
KL_PER_SEQUENCE = Metric(
    "predictions",
    {"kl_reverse": lambda o: o.spliced.kl_reverse},
    lambda sums: {"kl_reverse_per_sequence": ratio(sums["kl_reverse"], sums["sequences"])},
)
