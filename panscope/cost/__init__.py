"""Estimates the cost of a plan: FLOPs, memory, step time, storage and GPU hours."""
