"""From text to batches of token sequences: seeded document order, training and held-out parts, and packing."""
