"""Activations on disk: collected once, in shards, and read by any number of trainers (Gemma Scope, section 3.3)."""
