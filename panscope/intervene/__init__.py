"""Coders attached to a running language model: latents recorded, edited and attributed."""
