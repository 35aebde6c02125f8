"""Crash-safe files with damage detection: atomic writes, checksums, JSON lines, locks and tensors."""
