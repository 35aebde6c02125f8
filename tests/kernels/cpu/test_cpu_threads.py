"""The thread pool, and that results are bit-identical for any number of threads."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor

from panscope.kernels.backend import AdamStep, Contribution, Entries, Finish, Gradient, Kernels
from panscope.kernels.cpu import CpuKernels, build
from panscope.kernels.cpu.implementation import multiplies_bfloat16
from panscope.kernels.cpu.threads import Threads
from tests.support.cpu_oracle import DTYPES, draw, kernels


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_runs_once(threads: int) -> None:
    pool, done, users = Threads(threads), [0] * 100, set()

    def task(number: int) -> None:
        done[number] += 1
        users.add(threading.get_ident())
        time.sleep(0.001)

    pool.run(task, 100)
    assert done == [1] * 100
    assert len(users) == threads
    pool.run(task, 0)
    assert sum(done) == 100


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised_and_ends_the_run(threads: int) -> None:
    pool, done = Threads(threads), list[int]()

    def task(number: int) -> None:
        done.append(number)
        if number == 4:
            raise KeyError("four")
        time.sleep(0.002)

    with pytest.raises(KeyError, match="four"):
        pool.run(task, 1000)
    assert len(done) < 5 + 2 * threads
    count = len(done)
    time.sleep(0.01)
    assert len(done) == count, "nothing runs on"
    pool.run(lambda number: done.append(number), 8)
    assert sorted(done[count:]) == list(range(8))


def test_torchs_threads_are_left_alone() -> None:
    """Inside a task torch has one thread; outside, and in threads started later, as many as before."""
    before, inside = torch.get_num_threads(), list[int]()
    torch.set_num_threads(2)
    try:
        Threads(2).run(lambda _: inside.append(torch.get_num_threads()), 20)
        later = list[int]()
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), later) == (2, [2])
    finally:
        torch.set_num_threads(before)
    assert set(inside) == {1}


def test_as_many_threads_as_torch_has_at_first_use() -> None:
    assert Threads().count == torch.get_num_threads()
    assert Threads(3).count == 3


def test_several_callers_at_once() -> None:
    """Two of the caller's threads use the same kernels; each gets its own results."""
    kernel, found = CpuKernels(torch.bfloat16, 2), dict[int, list[Tensor]]()
    callers = [threading.Thread(target=lambda n=n: found.update({n: step(kernel, n)})) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for n in range(4):
        assert all(one.equal(other) for one, other in zip(found[n], step(kernels(), n), strict=True))


def step(kernel: CpuKernels, seed: int = 0) -> list[Tensor]:
    """All kernels of a training step, with latents of uneven frequency: one is active in every row."""
    B, D, F, k = 300, 65, 500, 6
    x, W = draw("normal", seed, B, D), draw("normal", seed + 1, F, D) / 8
    b_enc = torch.zeros(F)
    b_enc[3] = 100
    W_dec, norms = torch.nn.functional.normalize(W, dim=1), torch.empty(F)
    m, v, screen, rows = torch.zeros(F, D), torch.zeros(F, D), kernel.screen(W), kernel.rows(x, x.mean(dim=0))
    pre, latents = kernel.topk(rows, W, b_enc, screen, k, None)
    more = kernel.above(rows, W, b_enc, screen, torch.full((F,), 1.5), 10**6)
    assert more is not None
    codes = Entries(pre.flatten(), latents.flatten(), torch.arange(0, B * k + 1, k))
    made = kernel.reconstruct(codes, W_dec, torch.zeros(D), x, torch.full((B,), 1 / B), (100, F))
    grouped = kernel.group(codes.latents, F)
    places = torch.arange(B).repeat_interleave(k)
    gradient = Gradient(Contribution(made.slopes, rows.x, places, grouped), radial=torch.ones(F))
    square = kernel.squared_norm(W, gradient, True)
    adam = AdamStep(1e-2, 0.9, 0.999, 1e-8, 1, torch.tensor(0.5), torch.tensor(True))
    kernel.update(W, m, v, gradient, adam, Finish(project=True, unit=True, screen=screen, norms=norms))
    results = [*vars(rows).values(), pre, latents, *vars(more).values(), *vars(made).values(), *vars(grouped).values()]
    return [*results, square, W, m, v, norms, *vars(screen).values()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_shows_nowhere(dtype: torch.dtype) -> None:
    alone = step(kernels(dtype, 1))
    for threads in (2, 3):
        for one, other in zip(alone, step(kernels(dtype, threads)), strict=True):
            assert one.equal(other)


def test_the_precision_of_the_screen_is_chosen_and_said() -> None:
    assert CpuKernels(torch.float32, 1).description.endswith("screens in float32, 1 thread")
    assert CpuKernels(torch.bfloat16, 2).description.endswith("screens in bfloat16, 2 threads")
    chosen: Kernels = build(torch.device("cpu"))
    assert isinstance(chosen, CpuKernels)
    assert chosen.name == "cpu"
    assert chosen.screen_dtype == (torch.bfloat16 if multiplies_bfloat16() else torch.float32)


@pytest.mark.parametrize(
    ("has", "fast"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({}, False),
    ],
)
def test_only_instructions_make_bfloat16_fast(
    has: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch emulates bfloat16 products if the CPU has none, which is slower than float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert multiplies_bfloat16() is fast
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert multiplies_bfloat16() is False


FORKED = """
import os, torch
from panscope.kernels.cpu.threads import Threads
pool = Threads(2)
pool.run(lambda number: None, 8)
child = os.fork()
if child == 0:
    done = []
    pool.run(done.append, 8)
    os._exit(0 if sorted(done) == list(range(8)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="there is no fork on this system")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)
