"""`mse`: sum ||y - y_hat||^2 / (rows * E), the squared error averaged over rows and over the E dimensions.

It depends on the scale of the site: compare it within one site only. Training losses sum over dimensions instead
(Gemma Scope Eq. 4), which is E times this.
"""

from panscope.evals.metrics.base import Metric, over_count

MSE = Metric("rows", {"mse": lambda o: o.errors / o.y.shape[1]}, over_count("mse"), by_position=True)
