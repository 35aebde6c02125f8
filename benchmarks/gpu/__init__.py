"""What needs a GPU: the kernels of one training step, and a whole suite."""
