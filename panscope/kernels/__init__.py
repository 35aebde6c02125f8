"""The numerical kernels: the reference in plain torch, and fast sparse kernels for CPUs (Numba) and GPUs (Triton)."""
