"""How busy others kept the machine while something was timed: a shared machine makes some timings worthless.

From the kernel's count of busy time over all cores, less what this process and the children it waited for used. Its
ticks are 10 ms, so a share over half a second is good to some percent.
"""

import os
import resource
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""Places of the columns idle and iowait."""
_COLUMNS = 8
"""User, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in them."""


class OtherLoad:
    """Counts from the moment it is made."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy(), _own()

    def share(self) -> float | None:
        """Of all cores, what others used since; None on a machine without /proc/stat."""
        busy = _busy()
        if busy is None or self._busy is None:
            return None
        others = (busy - self._busy) - (_own() - self._own)
        cores = os.cpu_count() or 1
        return max(0.0, others / (time.perf_counter() - self._start) / cores)


def _own() -> float:
    """Seconds of this process and its children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _busy() -> float | None:
    """Seconds that all cores were busy since the machine started."""
    if not _STAT.exists():
        return None
    return busy_seconds(_STAT.read_text(), os.sysconf("SC_CLK_TCK"))


def busy_seconds(stat: str, ticks: int) -> float:
    """From the first line of /proc/stat, `ticks` a second."""
    columns = [int(column) for column in stat.splitlines()[0].split()[1 : 1 + _COLUMNS]]
    return sum(value for place, value in enumerate(columns) if place not in _IDLE) / ticks
