import threading
import time

import pytest

from foundation_stereo_depth.data import read_ahead as module
from foundation_stereo_depth.data.read_ahead import pick_workers, read_ahead
from foundation_stereo_depth.errors import DataError


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_ahead_keeps_the_order(workers: int) -> None:
    def slow_for_even(task: int) -> int:
        time.sleep(0.002 * (task % 2 == 0))
        return task * task

    assert list(read_ahead(range(30), slow_for_even, workers)) == [i * i for i in range(30)]


@pytest.mark.parametrize("workers", [0, 3])
def test_reading_ahead_passes_errors_on_and_leaves_no_thread(workers: int) -> None:
    def fail_at_seven(task: int) -> int:
        if task == 7:
            raise DataError("seven")
        return task

    seen = []
    with pytest.raises(DataError, match="seven"):
        seen.extend(read_ahead(range(100), fail_at_seven, workers))
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_reading_ahead_is_bounded() -> None:
    read: list[int] = []
    iterator = read_ahead(range(1000), read.append, 2)
    next(iterator)
    time.sleep(0.05)
    assert len(read) <= 5
    iterator.close()


@pytest.mark.parametrize(
    ("rates", "picked"),
    [
        ({1: 100, 2: 195, 4: 350, 8: 360}, 4),  # four cores, or a disk that serves four at once
        ({1: 100, 2: 90}, 1),  # readers that only wait for one another
        ({1: 100, 2: 119}, 1),
        ({1: 100, 2: 200, 4: 400, 8: 800, 16: 1600}, 16),  # a slow network: up to four threads a core are tried
        ({1: 0, 2: 0}, 1),
    ],
)
def test_threads_are_added_while_they_are_of_use(
    monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], picked: int
) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(module, "_rate", lambda *a: rates[a[2]])
    pick = pick_workers(lambda _: None, range(10))
    assert pick.workers == picked
    assert pick.why.count("with") == len(rates)


def test_a_rate_counts_what_all_threads_read() -> None:
    rate = module._rate(lambda _: time.sleep(0.01), iter(range(1000)), 3)
    assert 0 < rate <= 300


@pytest.mark.parametrize("samples", [0, 1, 3])
def test_a_handful_of_samples_is_enough(samples: int) -> None:
    assert pick_workers(lambda _: None, range(samples)).workers >= 1
    assert not [t for t in threading.enumerate() if t.name.startswith("measuring")]
