"""The geometric median: the point with the least sum of distances to all rows, where a pre-encoder bias starts.

Unlike the mean it is not drawn away by a few huge rows (Bricken et al. 2023; Gao et al. 2024, appendix A.1). Found by
Weiszfeld's iteration: the mean of the rows weighted by one over their distance, again and again.

Shape letters: B rows, E their width.
"""

import torch
from torch import Tensor

_MOST_ROWS = 32_768
"""OpenAI's code uses at most so many."""
_ITERATIONS = 100
_TOLERANCE = 1e-6


@torch.no_grad()
def geometric_median(rows: Tensor) -> Tensor:
    """[E] of rows [B, E], in float64 inside; where there are more than 32,768 rows, of evenly spaced ones.

    Evenly, because a multilayer coder's rows lie layer after layer.
    """
    points = rows[:: -(-len(rows) // _MOST_ROWS)].double()
    median = points.mean(dim=0)
    for _ in range(_ITERATIONS):
        distances = (points - median).norm(dim=1).clamp_min(torch.finfo(points.dtype).eps)
        following = (points / distances[:, None]).sum(dim=0) / (1 / distances).sum()
        moved = (following - median).norm()
        median = following
        if moved <= _TOLERANCE * median.norm():
            break
    return median.to(rows.dtype)
