"""`fvu` and `explained_variance`: the share of the variance that the coder misses, and the share it catches.

fvu = sum ||y - y_hat||^2 / sum ||y - mean(y)||^2 and explained_variance = 1 - fvu. Both sums run over all rows, and the
mean is over the whole evaluation set, not over a batch: the coder's loss against that of always predicting the mean
(Gemma Scope section 4.1). Averaging a ratio per token or per batch, as other tools do, gives other numbers.

The mean is found in a first look at the text, so the sum of squares about it is plain addition and cancels nothing,
however large the mean. Of one position or one subset it is the sum of squares about the mean of the whole set too.
"""

from panscope.evals.metrics.base import Metric, Numbers, Sums, ratio


def _numbers(sums: Sums) -> Numbers:
    fvu = ratio(sums["error"], sums["scatter"])
    return {"fvu": fvu, "explained_variance": 1 - fvu}


FVU = Metric("rows", {"error": lambda o: o.errors, "scatter": lambda o: o.scatters}, _numbers, by_position=True)
