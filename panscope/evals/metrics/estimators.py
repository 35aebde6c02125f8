"""What other papers and tools call explained variance or normalised error, each under a name of its own.

They are all of the same rows and differ by what the error is divided by, and by whether sums or rows are divided, so
they must not be compared with each other or with `fvu`:

- ev_uncentered = 1 - sum ||y - y_hat||^2 / sum ||y||^2: Llama Scope's explained variance (its Eq. 6). Never below
  explained_variance, and well above it where the site's mean is far from 0.
- fvu_scalar = sum ||y - y_hat||^2 / sum over rows and dimensions of (y_e - m)^2, with m one number, the mean of all
  entries: the Multi-Layer SAE's (it takes the variance of each batch, here it is that of the whole set).
- ev_token_mean = mean over rows of 1 - ||y - y_hat||^2 / ||y - mean(y)||^2: Llama Scope's code, SAEBench's
  `explained_variance_legacy` (both with the mean of a batch, here of the whole set). Rows at the mean are left out.
- nmse_token = mean over rows of ||y - y_hat||^2 / ||y||^2: OpenAI's code (Gao et al. 2024). Rows of 0 are left out.
"""

import torch
from torch import Tensor

from panscope.evals.metrics.base import Metric, Numbers, Sums, ratio


def _shares(errors: Tensor, of: Tensor) -> Tensor:
    """[B] the errors divided by `of`, 0 where that is 0."""
    return torch.where(of > 0, errors / torch.where(of > 0, of, 1), 0)


def _numbers(sums: Sums) -> Numbers:
    entries = sums["entries"]
    about_one_mean = sums["size"] - ratio(sums["entry"].square(), entries)
    return {
        "ev_uncentered": 1 - ratio(sums["error"], sums["size"]),
        "fvu_scalar": ratio(sums["error"], about_one_mean),
        "ev_token_mean": 1 - ratio(sums["share_of_scatter"], sums["off_mean"]),
        "nmse_token": ratio(sums["share_of_size"], sums["not_zero"]),
    }


ESTIMATORS = Metric(
    "rows",
    {
        "error": lambda o: o.errors,
        "size": lambda o: o.sizes,
        "entry": lambda o: o.y.sum(dim=1),
        "entries": lambda o: torch.full_like(o.errors, o.y.shape[1]),
        "share_of_scatter": lambda o: _shares(o.errors, o.scatters),
        "off_mean": lambda o: (o.scatters > 0).double(),
        "share_of_size": lambda o: _shares(o.errors, o.sizes),
        "not_zero": lambda o: (o.sizes > 0).double(),
    },
    _numbers,
)
