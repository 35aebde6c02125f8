"""A whole training run: Panscope against other libraries, language model included."""
