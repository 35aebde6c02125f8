"""From text to token sequences: documents in a seeded order, split into training and held-out, packed into batches."""
