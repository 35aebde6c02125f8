"""Listeners to the events of a run: a terminal, a notebook, the standard logging, experiment trackers."""
