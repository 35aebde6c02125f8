"""The verbs coders are written in; the only place that asks which kernels compute them."""
