"""Coder -> coder: changes of form that keep (or, for JumpReLU, approximate) what the coder computes."""
