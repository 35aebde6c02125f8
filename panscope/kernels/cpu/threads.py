"""A pool of threads that share out numbered tasks, each thread with a torch of one thread.

Single-threaded products in several threads, each on rows that stay in its own cache, run far nearer the machine's peak
than one product split by OpenMP. Which thread does a task never shows in its result.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier, Lock

import torch

_here = threading.local()
"""`_here.is_worker` is set in the threads of every pool."""


class Threads:
    """`count` threads, started at the first use; None takes torch's number of threads at that time."""

    def __init__(self, count: int | None = None) -> None:
        self._asked = count
        self._lock = Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._leader: ThreadPoolExecutor | None = None
        self._process = 0

    @property
    def count(self) -> int:
        """How many tasks run at once."""
        if self._asked is None:
            self._asked = torch.get_num_threads()
        return self._asked

    def run(self, task: Callable[[int], None], count: int) -> None:
        """Call task(0) ... task(count - 1), the next one whenever a thread is free; what one raises is raised here.

        With a single thread or a single task, or inside another task, the caller runs them itself. After an error no
        further task is begun.
        """
        if self.count == 1 or count <= 1 or getattr(_here, "is_worker", False):
            for number in range(count):
                task(number)
            return
        waiting = deque(range(count))
        pool = self._started()
        workers = [pool.submit(_drain, task, waiting) for _ in range(min(self.count, count))]
        try:
            for worker in workers:
                worker.result()
        finally:
            waiting.clear()
            wait(workers)

    def alone(self, task: Callable[[int], None], count: int) -> None:
        """Call task(0) ... task(count - 1) one after another in a thread whose torch has one thread too.

        What torch does between two calls of `run` is small. Shared out by OpenMP it gains little, and OpenMP's threads
        then spin for a while on the cores that `run` needs: measured here, a step takes up to twice as long.
        """
        if self.count == 1 or getattr(_here, "is_worker", False):
            for number in range(count):
                task(number)
            return
        self._started()
        assert self._leader is not None
        self._leader.submit(_in_turn, task, count).result()

    def _started(self) -> ThreadPoolExecutor:
        """The pool of this process: a child made by fork has none of its parent's threads."""
        with self._lock:
            if self._pool is None or self._process != os.getpid():
                everyone, before = Barrier(self.count), torch.get_num_threads()
                self._pool = ThreadPoolExecutor(self.count, "panscope", _become_worker)
                self._leader = ThreadPoolExecutor(1, "panscope-leader", _use_one_thread)
                self._process = os.getpid()
                wait([self._pool.submit(everyone.wait) for _ in range(self.count)])
                wait([self._leader.submit(torch.get_num_threads)])
                torch.set_num_threads(before)  # Theirs set the default of every thread to come, too.
            return self._pool


def _become_worker() -> None:
    _here.is_worker = True
    _use_one_thread()


def _in_turn(task: Callable[[int], None], count: int) -> None:
    for number in range(count):
        task(number)


def _use_one_thread() -> None:
    torch.get_num_threads()  # A thread's first use of torch takes over the default, whatever was set before it.
    torch.set_num_threads(1)


def _drain(task: Callable[[int], None], waiting: deque[int]) -> None:
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
