"""Where the time of training goes: a few steps under torch's profiler, summed over the parts that the code names.

The parts are ranges named `panscope::...`, in the loop, the trainer, the optimiser and the verbs; none lies inside
another. On a GPU the time of each is that of the kernels it started.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_PREFIX = "panscope::"
_WAIT, _WARM, _ACTIVE = 4, 1, 10
"""Steps that are left alone, steps that only warm the profiler up, and steps that count."""


@contextlib.contextmanager
def profiling(wanted: bool, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Yields what to call after every step; the table is said once, after 15 steps, or not at all in a shorter run."""
    if not wanted:
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    plan = schedule(wait=_WAIT, warmup=_WARM, active=_ACTIVE, repeat=1)
    with profile(
        activities=activities, schedule=plan, on_trace_ready=lambda seen: say(table(seen)), acc_events=True
    ) as it:
        yield it.step


def table(seen: profile) -> str:
    """Milliseconds a step and share of every part, the largest first."""
    on_gpu = torch.cuda.is_available()
    times, whole = {}, 0.0
    for event in seen.key_averages():
        if event.key.startswith(_PREFIX):
            times[event.key.removeprefix(_PREFIX)] = event.device_time_total if on_gpu else event.cpu_time_total
        elif event.key.startswith("ProfilerStep"):
            whole += event.cpu_time_total
    times["everything else"] = max(0.0, whole - sum(times.values()))
    lines = [f"where the time goes: {whole / 1e3 / _ACTIVE:.1f} ms a step (mean of {_ACTIVE})"]
    for part, time in sorted(times.items(), key=lambda item: -item[1]):
        lines.append(f"  {part:<16} {time / 1e3 / _ACTIVE:9.2f} ms  {time / whole:6.1%}")
    return "\n".join(lines)
