"""Coders for others: cards, exported and imported formats, and uploads to a hub."""
