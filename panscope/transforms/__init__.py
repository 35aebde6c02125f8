"""Transformations of coders that preserve (or, for JumpReLU, approximate) the function they compute."""
