"""Tuning of glibc's allocator for processes that send or receive large messages.

By default glibc maps every block of some megabytes anew and returns it to the system when it is freed, so each message
pays page faults for its whole length: half the time of sending or receiving it. Raised thresholds keep such blocks.
"""

import ctypes
import os
import sys

_MALLOPT_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
}
"""Environment variable to (`mallopt` parameter number, value in bytes)."""


def keep_large_blocks() -> bool:
    """Configure this process's allocator to reuse large blocks; returns whether it succeeded (glibc only).

    Settings given by environment variables are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = [setting for name, setting in _MALLOPT_SETTINGS.items() if name not in os.environ]
    succeeded = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(succeeded)
