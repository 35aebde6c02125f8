"""Activation servers and their clients: one store, or one language model, shared by many trainers."""
