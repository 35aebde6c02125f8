"""Coders attached to a running language model, to record, edit and attribute latents."""
