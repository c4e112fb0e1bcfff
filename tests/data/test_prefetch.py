import threading
import time

import pytest

from foundation_stereo_depth.data import prefetch as module
from foundation_stereo_depth.data.prefetch import default_workers, prefetch, prefetch_next
from foundation_stereo_depth.errors import DataError


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_keeps_the_order(workers: int) -> None:
    def slow_for_even(task: int) -> int:
        time.sleep(0.002 * (task % 2 == 0))
        return task * task

    assert list(prefetch(range(30), slow_for_even, workers)) == [i * i for i in range(30)]


@pytest.mark.parametrize("workers", [0, 3])
def test_prefetch_passes_errors_on_and_leaves_no_thread(workers: int) -> None:
    def fail_at_seven(task: int) -> int:
        if task == 7:
            raise DataError("seven")
        return task

    seen = []
    with pytest.raises(DataError, match="seven"):
        seen.extend(prefetch(range(100), fail_at_seven, workers))
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_prefetch_is_bounded() -> None:
    read: list[int] = []
    iterator = prefetch(range(1000), read.append, 2)
    next(iterator)
    time.sleep(0.05)
    assert len(read) <= 5
    iterator.close()


def test_prefetch_next_keeps_items_and_passes_errors_on() -> None:
    def items():
        yield from range(3)
        raise DataError("three")

    seen: list[int] = []
    with pytest.raises(DataError, match="three"):
        seen.extend(prefetch_next(items()))
    assert seen == [0, 1, 2]


@pytest.mark.parametrize(("cores", "workers"), [(1, 4), (2, 8), (64, 16)])
def test_default_workers_are_four_per_core_up_to_sixteen(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    assert default_workers() == workers
