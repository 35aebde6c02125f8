"""`panscope doctor`: what this machine has, what it lacks, and which kernels a run here would use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has and which kernels a run here would use; measures two matrix products, takes seconds.

    For example
      panscope doctor
    """
