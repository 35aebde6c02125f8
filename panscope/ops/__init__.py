"""The operations that coders are written in, and their dense and sparse implementations."""
