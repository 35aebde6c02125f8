"""Rows of activations for training: made by the language model as they are needed, and shuffled."""
