"""One training step: Panscope against other libraries, on rows that are already in memory."""
