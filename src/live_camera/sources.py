"""Sources of stereo pairs: two cameras, one camera with both views, or images. Grab both frames, then decode both."""

import time
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np

from foundation_stereo_depth.data.pairs import Pairs, split_side_by_side
from live_camera.camera import Camera, Frame
from live_camera.options import SourceOptions

_MAX_REGRABS = 8
_MAX_OFFSET = 0.6
"""In frame intervals: cameras further apart than this come closer if the earlier one is grabbed once more."""


class GrabTimes(NamedTuple):
    """When each frame of a pair was taken, s of `time.monotonic`."""

    left_s: float
    right_s: float


class NoFrameError(Exception):
    """A camera gives no frame: it was unplugged, its stream broke, or the recording is at its end.

    Attributes:
        role: which camera or file.
        note: one line on what is unusual about it; None where nothing is.
    """

    def __init__(self, role: str, note: str | None = None) -> None:
        super().__init__(role)
        self.role = role
        self.note = note


class CorruptFrameError(NoFrameError):
    """A frame arrived, but cannot be decoded."""


@runtime_checkable
class StereoSource(Protocol):
    """A source of stereo pairs.

    Attributes:
        live: pairs arrive at their own time; otherwise they wait, and end.
        fps: pairs per second, where that is known.
        cameras: what may have to be reopened.
    """

    live: bool
    fps: float | None
    cameras: list[Camera]

    def grab(self) -> GrabTimes:
        """Grab the next pair without decoding it.

        Raises:
            NoFrameError: a camera gives no frame.
        """
        ...

    def retrieve(self) -> tuple[Frame, Frame]:
        """Return the grabbed pair, RGB.

        Raises:
            CorruptFrameError: a frame cannot be decoded.
        """
        ...

    def rewind(self) -> None:
        """Start a recording again."""
        ...


class TwoCameras:
    """Two devices, streams or videos.

    Free-running cameras are out of step by up to a whole frame. A camera that is late by clearly more than half a frame
    is grabbed again; at exactly half a frame it would be grabbed again and again.
    """

    def __init__(self, left: Camera, right: Camera) -> None:
        self.cameras = [left, right]
        self.live = left.live
        self.fps = left.fps
        self._interval_s = 1 / self.fps if self.fps else 1 / 30
        self._last_s: float | None = None

    def grab(self) -> GrabTimes:
        """Grab the next pair without decoding it."""
        if not self.live:
            return self._grab_same_number()
        times_s = [_grab(camera) for camera in self.cameras]
        for _ in range(_MAX_REGRABS):
            if abs(times_s[1] - times_s[0]) <= _MAX_OFFSET * self._interval_s:
                break
            earlier = int(times_s[1] < times_s[0])
            times_s[earlier] = _grab(self.cameras[earlier])
        if self._last_s is not None and 0 < (interval_s := times_s[0] - self._last_s) < 1:
            self._interval_s = 0.9 * self._interval_s + 0.1 * interval_s
        self._last_s = times_s[0]
        return GrabTimes(*times_s)

    def _grab_same_number(self) -> GrabTimes:
        """Grab frame n of both videos: they belong together, whenever each is read."""
        left_s, right_s = (camera.grab() for camera in self.cameras)
        if left_s is not None and right_s is not None:
            return GrabTimes(left_s, left_s)
        if left_s is None and right_s is None:
            notes = [note for camera in self.cameras if (note := camera.explain_early_end()) is not None]
            raise NoFrameError(self.cameras[0].role, notes[0] if notes else None)
        shorter, longer = self.cameras if left_s is None else reversed(self.cameras)
        raise NoFrameError(
            shorter.role, f"{shorter.role} has ended; the remaining frames of {longer.role} are not used"
        )

    def retrieve(self) -> tuple[Frame, Frame]:
        """Return the grabbed pair, RGB."""
        left, right = (_retrieve(camera) for camera in self.cameras)
        return left, right

    def rewind(self) -> None:
        """Start both videos again."""
        for camera in self.cameras:
            camera.rewind()


class SideBySideCamera:
    """One device, stream or video with both views side by side in each frame."""

    def __init__(self, camera: Camera) -> None:
        self.cameras = [camera]
        self.live = camera.live
        self.fps = camera.fps

    def grab(self) -> GrabTimes:
        """Grab the next frame without decoding it; both views were taken at once."""
        time_s = _grab(self.cameras[0])
        return GrabTimes(time_s, time_s)

    def retrieve(self) -> tuple[Frame, Frame]:
        """Return the grabbed pair, RGB."""
        return split_side_by_side(_retrieve(self.cameras[0]), self.cameras[0].role)

    def rewind(self) -> None:
        """Start the video again."""
        self.cameras[0].rewind()


class ImagePairs:
    """Images in files."""

    live = False

    def __init__(self, pairs: Pairs) -> None:
        self.cameras: list[Camera] = []
        self.fps: float | None = None
        self._pairs = pairs
        self._names = list(pairs.files)
        self._index = -1

    def grab(self) -> GrabTimes:
        """Select the next pair without reading it."""
        self._index += 1
        if self._index >= len(self._names):
            raise NoFrameError(self._pairs.left)
        now_s = time.monotonic()
        return GrabTimes(now_s, now_s)

    def retrieve(self) -> tuple[Frame, Frame]:
        """Return the selected pair, RGB."""
        return self._pairs.read(self._names[self._index])

    def rewind(self) -> None:
        """Start again from the first pair."""
        self._index = -1


def arrange_views(left: Frame, right: Frame, source: SourceOptions) -> tuple[Frame, Frame]:
    """Return a pair as `--upside-down` and then `--swap` say."""
    if source.upside_down in ("left", "both"):
        left = np.asarray(cv2.rotate(left, cv2.ROTATE_180), np.uint8)
    if source.upside_down in ("right", "both"):
        right = np.asarray(cv2.rotate(right, cv2.ROTATE_180), np.uint8)
    return (right, left) if source.swap else (left, right)


def _grab(camera: Camera) -> float:
    time_s = camera.grab()
    if time_s is None:
        raise NoFrameError(camera.role, camera.explain_early_end())
    return time_s


def _retrieve(camera: Camera) -> Frame:
    frame = camera.retrieve()
    if frame is None:
        raise CorruptFrameError(camera.role)
    return frame
