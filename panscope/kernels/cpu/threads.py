"""A thread pool for numbered tasks, in whose threads torch is single-threaded.

Single-threaded products in several threads, each on rows that stay in its own cache, run far closer to the machine's
peak than one product parallelised by OpenMP. Results do not depend on which thread runs a task.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier, Lock

import torch

_thread = threading.local()
"""`_thread.is_worker` is set in the threads of every pool."""


class Threads:
    """A pool of `count` threads, started at the first use; None is torch's number of threads at that time."""

    def __init__(self, count: int | None = None) -> None:
        self._count = count
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._leader: ThreadPoolExecutor | None = None
        self._process = 0

    @property
    def count(self) -> int:
        """Number of tasks that run at once."""
        if self._count is None:
            self._count = torch.get_num_threads()
        return self._count

    def run(self, task: Callable[[int], None], count: int) -> None:
        """Call task(0) ... task(count - 1), each in the next free thread; raises what a task raises.

        With one thread, one task, or inside another task, they run in the calling thread. After an error no further
        task is started.
        """
        if self.count == 1 or count <= 1 or getattr(_thread, "is_worker", False):
            for number in range(count):
                task(number)
            return
        waiting = deque(range(count))
        pool = self._start()
        workers = [pool.submit(_run_waiting, task, waiting) for _ in range(min(self.count, count))]
        try:
            for worker in workers:
                worker.result()
        finally:
            waiting.clear()
            wait(workers)

    def run_serially(self, task: Callable[[int], None], count: int) -> None:
        """Call task(0) ... task(count - 1) one after another in a thread in which torch is single-threaded.

        Torch's work between two calls of `run` is small. Parallelising it with OpenMP gains little, and OpenMP's
        threads then spin for a while on the cores that `run` needs: measured, a step takes up to twice as long.
        """
        if self.count == 1 or getattr(_thread, "is_worker", False):
            for number in range(count):
                task(number)
            return
        self._start()
        assert self._leader is not None
        self._leader.submit(_run_in_order, task, count).result()

    def _start(self) -> ThreadPoolExecutor:
        """The pool of this process, started if necessary: a forked child has none of its parent's threads."""
        with self._lock:
            if self._pool is None or self._process != os.getpid():
                barrier, before = Barrier(self.count), torch.get_num_threads()
                self._pool = ThreadPoolExecutor(self.count, "panscope", _become_worker)
                self._leader = ThreadPoolExecutor(1, "panscope-leader", _use_one_thread)
                self._process = os.getpid()
                wait([self._pool.submit(barrier.wait) for _ in range(self.count)])
                wait([self._leader.submit(torch.get_num_threads)])
                torch.set_num_threads(before)  # The workers also changed the default for threads started later.
            return self._pool


def _become_worker() -> None:
    _thread.is_worker = True
    _use_one_thread()


def _run_in_order(task: Callable[[int], None], count: int) -> None:
    for number in range(count):
        task(number)


def _use_one_thread() -> None:
    torch.get_num_threads()  # A thread's first use of torch resets its number of threads to the default.
    torch.set_num_threads(1)


def _run_waiting(task: Callable[[int], None], waiting: deque[int]) -> None:
    while True:
        try:
            number = waiting.popleft()
        except IndexError:
            return
        try:
            task(number)
        except BaseException:
            waiting.clear()
            raise
