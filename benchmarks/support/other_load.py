"""How busy other processes kept the machine during a measurement: on a shared machine that can spoil a timing.

It is the kernel's count of busy time over all cores, less what this process and its finished children used. The count
has a resolution of 10 ms, so over half a second the share is accurate to a few per cent.
"""

import os
import resource
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)
"""The columns `idle` and `iowait`, from 0."""
_COLUMNS = 8
"""User, nice, system, idle, iowait, irq, softirq, steal; the columns after these are already included in them."""


class OtherLoad:
    """The load of other processes since this object was made."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.perf_counter(), _busy(), _own()

    def share(self) -> float | None:
        """The share of all cores that other processes used, from 0 to 1; None on a machine without /proc/stat."""
        busy = _busy()
        if busy is None or self._busy is None:
            return None
        others = (busy - self._busy) - (_own() - self._own)
        cores = os.cpu_count() or 1
        return max(0.0, others / (time.perf_counter() - self._start) / cores)


def _own() -> float:
    """CPU seconds of this process and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _busy() -> float | None:
    """Seconds for which cores were busy, summed over all cores, since the machine started."""
    if not _STAT.exists():
        return None
    return busy_seconds(_STAT.read_text(), os.sysconf("SC_CLK_TCK"))


def busy_seconds(stat: str, ticks: int) -> float:
    """Busy seconds by the first line of `stat`, the text of /proc/stat, which counts `ticks` a second."""
    columns = [int(column) for column in stat.splitlines()[0].split()[1 : 1 + _COLUMNS]]
    return sum(value for place, value in enumerate(columns) if place not in _IDLE) / ticks
