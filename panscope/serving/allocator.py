"""Keep the C library from giving the memory of every message back to the system.

By glibc's rules a block of some megabytes is mapped anew each time it is asked for, and every page of it faults again,
which costs a sender or receiver of large messages half its time. One call tells it to keep such blocks.
"""

import ctypes
import os
import sys

_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
}
"""By the variable that sets the same from outside: the number of the parameter, and its value in bytes."""


def keep_large_blocks() -> bool:
    """Do it for this process, from now on; whether it could be done (glibc only). What the environment says stays."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = [setting for name, setting in _SETTINGS.items() if name not in os.environ]
    done = [mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(done)
