"""Benchmarks of Panscope, one command each: benchmarks/README.md lists them."""
