"""Threads that read before the result is needed.

Threads rather than processes: decoding and file reading release Python's lock, nothing is copied or pickled, and no
worker can outlive its reader.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_THREADS_PER_CORE, _MOST_THREADS = 4, 16


def prefetch(tasks: Iterable[Task], read: Callable[[Task], Result], workers: int) -> Iterator[Result]:
    """Yield read(task) for each task, in order; `workers` threads hold up to two results each. 0 reads in place."""
    if workers == 0:
        yield from map(read, tasks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(read, task))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch_next(items: Iterable[Result]) -> Iterator[Result]:
    """Yield the same items, each made by a thread while the one before it is in use."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Return how many threads read samples where no flag says it.

    Four per core: a slow disk gains from more threads than cores, and a thread whose results are not needed yet waits.
    """
    return min(_THREADS_PER_CORE * available_cores(), _MOST_THREADS)
