"""Finished coders in use: attached to a running language model, and in an evaluation."""
