"""Activation rows for training: computed by the language model or read from a store, and shuffled."""
