"""Load any coder from anywhere, and the results of a run."""
