"""Evaluation: one look of the language model at held-out text measures every coder of a run.

`run.evaluate` is the way in, `metrics` has one file a metric, `table` shows and stores what came out.
"""
