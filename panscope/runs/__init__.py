"""Runs: training, evaluation and every other stage that reads or writes a run folder."""
