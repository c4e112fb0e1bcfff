"""Stereo matchers with their input size: OpenCV's, or a network whose file may be replaced while it runs.

Networks come in as functions, so that this module never imports torch.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from foundation_stereo_depth.colours import find_uncertain
from foundation_stereo_depth.errors import UserError
from foundation_stereo_depth.stereo import sgbm
from foundation_stereo_depth.stereo.geometry import StereoCalibration
from foundation_stereo_depth.stereo.match import StereoMatch, StereoMatcher
from live_camera.rig import StereoFrame

_CHECK_EVERY_S = 0.5


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
