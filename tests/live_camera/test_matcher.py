import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import shifted_pair

from foundation_stereo_depth.errors import CheckpointError
from live_camera import matcher as matcher_module
from live_camera.matcher import Answer, BlockMatcher, WatchedMatcher

LEFT, RIGHT = shifted_pair(48, 64, 5)


class Numbered:
    """A network that answers with the number in its file."""

    def __init__(self, path: Path, *, height: int = 48, width: int = 64) -> None:
        text = path.read_text()
        if not text.endswith("whole"):
            raise CheckpointError(f"{path}: is not a whole checkpoint")
        self.number = float(text.split()[0])
        self.name = f"step {text.split()[0]}"
        self.height, self.width = height, width
        self.thread = threading.current_thread().name

    def __call__(self, left: np.ndarray, right: np.ndarray) -> Answer:
        assert left.shape == right.shape
        return Answer(disparity_px=np.full(left.shape[:2], self.number, np.float32))


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(matcher_module, "_LOOK_EVERY_S", 0.005)
    replace("1 whole")
    return Path("last.pt")


def replace(text: str) -> None:
    Path("new").write_text(text)
    Path("new").replace("last.pt")


def later(load: Callable[[Path], Numbered]) -> Callable[[Path], Numbered]:
    """Loads as `load` does, but for the first file."""
    loads: Iterator[Callable[[Path], Numbered]] = iter([Numbered])

    def load_next(path: Path) -> Numbered:
        return next(loads, load)(path)

    return load_next


def answers(watched: WatchedMatcher, number: float) -> None:
    """Lets pass once the network with this number answers."""
    until_s = time.monotonic() + 5
    while watched(LEFT, RIGHT).disparity_px[0, 0] != number:
        assert time.monotonic() < until_s
        time.sleep(0.002)


def complains(watched: WatchedMatcher, words: str) -> None:
    until_s = time.monotonic() + 5
    while watched.problem is None or words not in watched.problem:
        assert time.monotonic() < until_s
        time.sleep(0.002)


def test_a_new_file_is_taken_over_between_two_pairs(file: Path) -> None:
    with WatchedMatcher(file, Numbered) as watched:
        assert watched.name == "step 1"
        for number in range(2, 12):
            replace(f"{number} whole")
            answers(watched, number)
        assert watched.name == "step 11"
        assert watched.replaced == 10
        assert watched.problem is None


def test_a_file_that_is_replaced_while_the_first_one_is_read_is_taken_over(file: Path) -> None:
    def read_slowly(path: Path) -> Numbered:
        found = Numbered(path)
        if found.number == 1:
            replace("2 whole")
        return found

    with WatchedMatcher(file, read_slowly) as watched:
        answers(watched, 2)


def test_loading_does_not_stop_the_view(file: Path) -> None:
    may_load = threading.Event()

    def slow(path: Path) -> Numbered:
        may_load.wait()
        return Numbered(path)

    with WatchedMatcher(file, later(slow)) as watched:
        replace("2 whole")
        time.sleep(0.05)
        assert watched(LEFT, RIGHT).disparity_px[0, 0] == 1
        may_load.set()
        answers(watched, 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [("2 ha", "last.pt not taken over: last.pt: is not a whole checkpoint"), ("nan whole", "answers with NaN")],
)
def test_a_broken_file_is_left_alone_and_the_next_good_one_is_taken(file: Path, content: str, said: str) -> None:
    with WatchedMatcher(file, Numbered) as watched:
        replace(content)
        complains(watched, said)
        assert watched(LEFT, RIGHT).disparity_px[0, 0] == 1
        replace("3 whole")
        answers(watched, 3)
        assert watched.problem is None


def test_a_file_that_is_written_slowly_in_place_is_taken_when_it_is_whole(file: Path) -> None:
    with WatchedMatcher(file, Numbered) as watched:
        with file.open("w") as growing:
            for part in ("2 ", "wh", "ole"):
                growing.write(part)
                growing.flush()
                time.sleep(0.02)
        answers(watched, 2)


def test_a_file_that_is_gone_or_of_another_size_is_said(file: Path) -> None:
    with WatchedMatcher(file, later(lambda path: Numbered(path, width=128))) as watched:
        file.unlink()
        complains(watched, "last.pt is gone")
        replace("2 whole")
        complains(watched, "works at 128x48, but the view at 64x48")
        assert watched(LEFT, RIGHT).disparity_px[0, 0] == 1


def test_a_folder_that_cannot_be_looked_at_for_a_while_is_said_and_the_view_goes_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WatchedMatcher(file, Numbered) as watched:
        signature = matcher_module._signature

        def stale(path: Path) -> None:
            raise OSError(116, "Stale file handle", str(path))

        monkeypatch.setattr(matcher_module, "_signature", stale)
        complains(watched, "last.pt cannot be looked at (Stale file handle)")
        assert watched(LEFT, RIGHT).disparity_px[0, 0] == 1
        replace("2 whole")
        monkeypatch.setattr(matcher_module, "_signature", signature)
        answers(watched, 2)
        assert watched.problem is None


def test_a_mistake_of_ours_in_the_thread_is_not_swallowed(file: Path) -> None:
    def broken(path: Path) -> Numbered:
        raise ZeroDivisionError

    with WatchedMatcher(file, later(broken)) as watched:
        os.utime(file)
        with pytest.raises(ZeroDivisionError):
            answers(watched, 2)


def test_the_classical_matcher_says_where_it_is_in_doubt() -> None:
    left, right = shifted_pair(96, 160, 7)
    answer = BlockMatcher(height=96, width=160)(left, right)
    assert answer.doubtful is not None
    assert np.median(answer.disparity_px) == pytest.approx(7, abs=0.1)
    assert answer.doubtful.mean() < 0.5
    assert np.isfinite(answer.disparity_px).all()
