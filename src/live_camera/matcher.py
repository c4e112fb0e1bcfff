"""Stereo matchers with their input size: OpenCV's, or a network whose file may be replaced while it runs.

Networks come in as functions, so that this module never imports torch.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from foundation_stereo_depth.colours import find_uncertain
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.geometry import StereoCalibration
from foundation_stereo_depth.stereo.match import StereoMatch, StereoMatcher
from live_camera.rig import StereoFrame

_CHECK_EVERY_S = 0.5
_SHARE_OF_FRAME = 0.9
"""Of the time between two frames, that a pair may take: the rest is for rectification."""
_TRIAL_S, _FEWEST_TRIALS = 0.5, 3
_TRIAL_SHIFT_PX = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Matcher:
    """A stereo matcher and the size at which it runs.

    Attributes:
        match: left and right view, rectified, RGB, of that size -> match.
        description: what runs, for the overlay: the network and its training step.
        height, width: of the views, px.
    """

    match: StereoMatcher
    description: str
    height: int
    width: int


def sgbm_matcher(*, height: int, width: int) -> Matcher:
    """Return OpenCV's semi-global matcher; where a match is not valid, its disparity was filled in."""
    return Matcher(match=sgbm.match, description="OpenCV SGBM", height=height, width=width)


def choose_size(
    open_at: Callable[[int, int], StereoMatcher], sizes: Sequence[tuple[int, int]], fps: float
) -> tuple[tuple[int, int], str]:
    """Return the first size at which a pair takes no longer than a frame, else the last; and why, for the log.

    Args:
        open_at: opens the network at a height and width.
        sizes: height and width, px, the largest first.
        fps: pairs a second.
    """
    reasons: list[str] = []
    for height, width in sizes[:-1]:
        pair_s = _time_pair(open_at(height, width), height, width)
        reasons.append(f"a pair takes {1000 * pair_s:.0f} ms at {width}x{height}, {1000 / fps:.0f} ms between frames")
        if pair_s <= _SHARE_OF_FRAME / fps:
            return (height, width), "; ".join(reasons)
    return sizes[-1], "; ".join(reasons) or "the images are not larger"


def _time_pair(match: StereoMatcher, height: int, width: int) -> float:
    """Return the seconds that a pair takes, median of half a second: of texture, 16 px in front of infinity."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    left = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    right = np.ascontiguousarray(np.roll(left, -_TRIAL_SHIFT_PX, axis=1))
    match(left, right)  # the first call includes set-up work
    times_s: list[float] = []
    began_s = time.perf_counter()
    while len(times_s) < _FEWEST_TRIALS or time.perf_counter() - began_s < _TRIAL_S:
        pair_began_s = time.perf_counter()
        match(left, right)
        times_s.append(time.perf_counter() - pair_began_s)
    return statistics.median(times_s)


class WatchedMatcher:
    """A network that is replaced, between two pairs, whenever its file is; to be used in a `with`.

    A thread checks the file, loads it, and runs it on one pair, so that the first pair of the view is not delayed by
    the warm-up. A file that cannot be loaded, or whose network predicts NaN only, is not used: the old network stays
    and `problem` states the reason.

    Args:
        path: the file.
        load: file -> network; called at once for the first one.

    Attributes:
        height, width: of the views, px.
        problem: why the newest file is not used; None where it is.
        replaced: how many files replaced the one before.
    """

    def __init__(self, path: Path, load: Callable[[Path], Matcher]) -> None:
        self._path = path
        self._load = load
        self._seen = _file_signature(path)  # before it is read: one that is replaced meanwhile is read again
        first = load(path)
        self._running = first
        self._next: Matcher | None = None
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="checkpoint", daemon=True)
        self.problem: str | None = None
        self.replaced = 0
        self.height, self.width = first.height, first.width

    @property
    def description(self) -> str:
        """What runs now."""
        return self._running.description

    def __enter__(self) -> "WatchedMatcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def match(self, left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> StereoMatch:
        """Match one rectified pair, RGB, by the newest usable network."""
        if self._failure is not None:
            raise self._failure
        ready, self._next = self._next, None
        if ready is not None:
            self._running = ready
            self.replaced += 1
        return self._running.match(left, right)

    def _watch(self) -> None:
        try:
            while not self._stop.wait(_CHECK_EVERY_S):
                self._check_file()
        except BaseException as error:  # raised again by `match`
            self._failure = error

    def _check_file(self) -> None:
        try:
            found = _file_signature(self._path)
        except OSError as error:  # of a network folder, perhaps for a moment
            self.problem = f"{self._path.name} cannot be checked ({error.strerror or error})"
            self._seen = None  # so that it is read again when it is back
            return
        if found == self._seen:
            return
        self._seen = found  # before it is read: one that is replaced meanwhile is read again
        if found is None:
            self.problem = f"{self._path.name} does not exist any more; the network loaded before stays"
            return
        try:
            network = self._load(self._path)
            self._check_network(network)
        except (UserError, OSError) as error:
            self.problem = f"{self._path.name} is not used: {error}"
            return
        except Exception as error:  # what a damaged file holds may fail anywhere, and the view must not end by it
            self.problem = f"{self._path.name} is not used: it is damaged ({type(error).__name__}: {error})"
            return
        self._next, self.problem = network, None

    def _check_network(self, network: Matcher) -> None:
        if (network.height, network.width) != (self.height, self.width):
            raise UserError(f"it runs at {network.width}x{network.height}, but the view at {self.width}x{self.height}")
        # Noise: any working network predicts some disparity for it.
        left, right = np.random.default_rng(0).integers(0, 256, (2, self.height, self.width, 3), dtype=np.uint8)
        if not np.isfinite(network.match(left, right).disparity_px).any():
            raise UserError("its network predicts NaN")


def _file_signature(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is replaced; None where there is no file."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedFrame:
    """A stereo frame with its disparity and depth.

    Attributes:
        frame: as the cameras gave it.
        left, right: rectified, RGB, at the matcher's size.
        match: the disparity of the left view.
        depth_m: NaN where unknown; None without a calibration.
        calibration: of the rectified pair, where there is one.
    """

    frame: StereoFrame
    left: UInt8[np.ndarray, "H W 3"]
    right: UInt8[np.ndarray, "H W 3"]
    match: StereoMatch
    depth_m: Float[np.ndarray, "H W"] | None
    calibration: StereoCalibration | None

    def low_confidence(self, min_confidence: float) -> Bool[np.ndarray, "H W"]:
        """Return where confidence is lower than this; of a matcher without confidence, where it is not valid."""
        return find_uncertain(self.match, min_confidence)
