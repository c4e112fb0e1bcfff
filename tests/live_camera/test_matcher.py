import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import shifted_pair

from foundation_stereo_depth.errors import CheckpointError
from foundation_stereo_depth.stereo.match import StereoMatch, StereoMatcher
from live_camera import matcher as matcher_module
from live_camera.matcher import Matcher, WatchedMatcher, choose_size, sgbm_matcher

LEFT, RIGHT = shifted_pair(48, 64, 5)


def read_network(path: Path, *, height: int = 48, width: int = 64) -> Matcher:
    """Return a network that predicts the number in its file everywhere."""
    text = path.read_text()
    if not text.endswith("complete"):
        raise CheckpointError(f"{path}: is not a complete checkpoint")
    number = text.split()[0]

    def match(left: np.ndarray, right: np.ndarray) -> StereoMatch:
        disparity_px = np.full(left.shape[:2], float(number), np.float32)
        return StereoMatch(disparity_px=disparity_px, valid=np.isfinite(disparity_px))

    return Matcher(match=match, description=f"step {number}", height=height, width=width)


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(matcher_module, "_CHECK_EVERY_S", 0.005)
    replace("1 complete")
    return Path("last.pt")


def replace(text: str) -> None:
    Path("new").write_text(text)
    Path("new").replace("last.pt")


def later(load: Callable[[Path], Matcher]) -> Callable[[Path], Matcher]:
    """Return a loader that reads the first file as usual and calls `load` for all others."""
    loads: Iterator[Callable[[Path], Matcher]] = iter([read_network])

    def load_next(path: Path) -> Matcher:
        return next(loads, load)(path)

    return load_next


def wait_for_network(watched: WatchedMatcher, number: float) -> None:
    """Wait until the network with this number is used."""
    until_s = time.monotonic() + 5
    while watched.match(LEFT, RIGHT).disparity_px[0, 0] != number:
        assert time.monotonic() < until_s
        time.sleep(0.002)


def wait_for_problem(watched: WatchedMatcher, words: str) -> None:
    until_s = time.monotonic() + 5
    while watched.problem is None or words not in watched.problem:
        assert time.monotonic() < until_s
        time.sleep(0.002)


def test_replaced_file_is_loaded_between_two_pairs(file: Path) -> None:
    with WatchedMatcher(file, read_network) as watched:
        assert watched.description == "step 1"
        for number in range(2, 12):
            replace(f"{number} complete")
            wait_for_network(watched, number)
        assert watched.description == "step 11"
        assert watched.replaced == 10
        assert watched.problem is None


def test_file_replaced_during_the_first_load_is_loaded_again(file: Path) -> None:
    def read_slowly(path: Path) -> Matcher:
        network = read_network(path)
        if network.description == "step 1":
            replace("2 complete")
        return network

    with WatchedMatcher(file, read_slowly) as watched:
        wait_for_network(watched, 2)


def test_matching_continues_while_a_file_is_loaded(file: Path) -> None:
    may_load = threading.Event()

    def slow(path: Path) -> Matcher:
        may_load.wait()
        return read_network(path)

    with WatchedMatcher(file, later(slow)) as watched:
        replace("2 complete")
        time.sleep(0.05)
        assert watched.match(LEFT, RIGHT).disparity_px[0, 0] == 1
        may_load.set()
        wait_for_network(watched, 2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [("2 comp", "last.pt is not used: last.pt: is not a complete checkpoint"), ("nan complete", "predicts NaN")],
)
def test_unusable_file_is_reported_and_the_next_valid_one_loaded(file: Path, content: str, problem: str) -> None:
    with WatchedMatcher(file, read_network) as watched:
        replace(content)
        wait_for_problem(watched, problem)
        assert watched.match(LEFT, RIGHT).disparity_px[0, 0] == 1
        replace("3 complete")
        wait_for_network(watched, 3)
        assert watched.problem is None


def test_file_written_slowly_in_place_is_loaded_once_complete(file: Path) -> None:
    with WatchedMatcher(file, read_network) as watched:
        with file.open("w") as growing:
            for part in ("2 ", "comp", "lete"):
                growing.write(part)
                growing.flush()
                time.sleep(0.02)
        wait_for_network(watched, 2)


def test_missing_file_and_another_input_size_are_reported(file: Path) -> None:
    with WatchedMatcher(file, later(lambda path: read_network(path, width=128))) as watched:
        file.unlink()
        wait_for_problem(watched, "last.pt does not exist any more")
        replace("2 complete")
        wait_for_problem(watched, "it runs at 128x48, but the view at 64x48")
        assert watched.match(LEFT, RIGHT).disparity_px[0, 0] == 1


def test_unreadable_folder_is_reported_until_it_is_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WatchedMatcher(file, read_network) as watched:
        signature = matcher_module._file_signature

        def stale(path: Path) -> None:
            raise OSError(116, "Stale file handle", str(path))

        monkeypatch.setattr(matcher_module, "_file_signature", stale)
        wait_for_problem(watched, "last.pt cannot be checked (Stale file handle)")
        assert watched.match(LEFT, RIGHT).disparity_px[0, 0] == 1
        replace("2 complete")
        monkeypatch.setattr(matcher_module, "_file_signature", signature)
        wait_for_network(watched, 2)
        assert watched.problem is None


def test_any_failure_of_a_damaged_file_is_reported_and_the_old_network_stays(file: Path) -> None:
    def broken(path: Path) -> Matcher:
        raise zlib.error("invalid block")

    with WatchedMatcher(file, later(broken)) as watched:
        os.utime(file)
        wait_for_problem(watched, "is not used: it is damaged (error: invalid block)")
        assert watched.replaced == 0


def test_sgbm_matcher_marks_filled_pixels_as_not_valid() -> None:
    left, right = shifted_pair(96, 160, 7)
    match = sgbm_matcher(height=96, width=160).match(left, right)
    assert np.median(match.disparity_px) == pytest.approx(7, abs=0.1)
    assert 0.5 < match.valid.mean() < 1
    assert np.isfinite(match.disparity_px).all()


@pytest.mark.parametrize(("pair_s", "expected"), [(0.0, (48, 64)), (0.03, (24, 32))])
def test_largest_size_that_keeps_up_is_chosen(
    monkeypatch: pytest.MonkeyPatch, pair_s: float, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(matcher_module, "_TRIAL_S", 0.0)
    tried: list[tuple[int, ...]] = []

    def open_at(height: int, width: int) -> StereoMatcher:
        def match(left: np.ndarray, right: np.ndarray) -> StereoMatch:
            tried.append(left.shape)
            assert left.shape == right.shape == (height, width, 3)
            time.sleep(pair_s)
            disparity_px = np.ones(left.shape[:2], np.float32)
            return StereoMatch(disparity_px=disparity_px, valid=disparity_px > 0)

        return match

    size, reason = choose_size(open_at, [(48, 64), (24, 32)], fps=50.0)
    assert size == expected
    assert set(tried) == {(48, 64, 3)}  # the last size is taken without a trial
    assert "ms at 64x48, 20 ms between frames" in reason


def test_smallest_size_is_taken_without_a_trial() -> None:
    size, reason = choose_size(lambda *size: pytest.fail(f"opened at {size}"), [(24, 32)], fps=30.0)
    assert (size, reason) == ((24, 32), "the images are not larger")
