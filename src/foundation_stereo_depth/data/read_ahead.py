"""Threads that read ahead, and how many of them are of use.

Threads rather than processes: decoding and file reading release Python's lock, nothing is copied or pickled, and a
worker cannot be left behind.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_MEASURED_S = 0.1
"""How long each number of threads is tried."""
_WORTHWHILE = 1.2
"""Twice the threads have to read so many times as much; less is within the noise, or not worth the cores."""


def read_ahead(tasks: Iterable[Task], read: Callable[[Task], Result], workers: int) -> Iterator[Result]:
    """read(task) for each task, in order; `workers` threads keep up to two results each in stock. 0 reads in place."""
    if workers == 0:
        yield from map(read, tasks)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    stock: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            stock.append(pool.submit(read, task))
            if len(stock) > 2 * workers:
                yield stock.popleft().result()
        while stock:
            yield stock.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def one_ahead(items: Iterable[Result]) -> Iterator[Result]:
    """The same items, each made by a thread while the one before it is in use."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pick(NamedTuple):
    """A number of threads, and why it was picked."""

    workers: int
    why: str


def pick_workers(read: Callable[[Task], object], tasks: Sequence[Task]) -> Pick:
    """The number of threads beyond which twice as many would hardly read more, measured in some tenths of a second.

    Args:
        read: does what a thread will have to do, and nothing that lasts.
        tasks: some of what there is to read, in random order; may end early.
    """
    stock = iter(tasks)
    rates: dict[int, float] = {}
    # A slow disk gains from more threads than there are cores; more than four a core have not been seen to help.
    for workers in itertools.takewhile(lambda n: n <= 4 * available_cores(), (2**i for i in range(7))):
        rates[workers] = _rate(read, stock, workers)
        if workers > 1 and not _gained(rates):
            break
    picked = max(rates) if len(rates) == 1 or _gained(rates) else max(rates) // 2
    tried = ", ".join(f"{rate:,.0f} with {workers}" for workers, rate in rates.items())
    return Pick(picked, f"measured samples/s: {tried}")


def _gained(rates: dict[int, float]) -> bool:
    most = max(rates)
    return rates[most] > 0 and rates[most] >= _WORTHWHILE * rates[most // 2]


def _rate(read: Callable[[Task], object], tasks: Iterator[Task], workers: int) -> float:
    """Tasks a second with so many threads; 0 where no task is left."""
    began_s = time.perf_counter()

    def work(mine: Task | None) -> int:
        count = 0
        while mine is not None:
            read(mine)
            count += 1
            mine = next(tasks, None) if time.perf_counter() < began_s + _MEASURED_S else None
        return count

    with ThreadPoolExecutor(workers, thread_name_prefix="measuring") as pool:
        counts = list(pool.map(work, list(itertools.islice(tasks, workers))))
    return sum(counts) / (time.perf_counter() - began_s)
