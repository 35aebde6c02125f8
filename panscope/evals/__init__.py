"""Evaluation: one look of the language model at held-out text measures every coder of a run.

`evaluate` is the entry point, `metrics` has one file a metric, `table` shows and stores the results.
"""
