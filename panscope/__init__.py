"""Panscope: suites of sparse autoencoders on every layer and sublayer of a language model.

Only the version lives here, so that importing any part of the package imports nothing else.
"""

__version__ = "0.1.0"
