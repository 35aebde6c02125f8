"""Training: one batch of activations, many coders."""
