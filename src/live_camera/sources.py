"""What pairs come from: two cameras, one camera with both eyes, or pictures. Grab both, then decode both."""

import time
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from foundation_stereo_depth.data.codecs import read_rgb
from foundation_stereo_depth.data.pairs import Pairs
from foundation_stereo_depth.errors import CameraError
from live_camera.camera import Camera, Picture

_MOST_CATCHING_UP = 8
_IN_STEP = 0.6
"""Eyes further apart than this share of a picture's time would be nearer if the earlier one went on by one."""


class Grabbed(NamedTuple):
    """When each eye was taken, s of `time.monotonic`."""

    left_s: float
    right_s: float


class LostError(Exception):
    """An eye gives nothing: a camera was unplugged, a stream broke, or a recording is at its end.

    Attributes:
        role: which eye.
        note: a line on what is odd about it; None where nothing is.
    """

    def __init__(self, role: str, note: str | None = None) -> None:
        super().__init__(role)
        self.role = role
        self.note = note


class DamagedError(LostError):
    """A picture came, but cannot be decoded."""


@runtime_checkable
class Eyes(Protocol):
    """Where pairs come from.

    Attributes:
        live: they come when they come; else they wait, and end.
        fps: pairs a second, where that is known.
        cameras: what may have to be opened again.
    """

    live: bool
    fps: float | None
    cameras: list[Camera]

    def grab(self) -> Grabbed:
        """The next pair, not yet decoded.

        Raises:
            LostError: an eye gives none.
        """
        ...

    def retrieve(self) -> tuple[Picture, Picture]:
        """The grabbed pair, RGB.

        Raises:
            DamagedError: an eye cannot be decoded.
        """
        ...

    def rewind(self) -> None:
        """A recording starts again."""
        ...


class TwoCameras:
    """Two devices, streams or videos.

    Cameras that run freely are out of step by up to a whole picture. Where one is behind by clearly more than half of
    one, it is grabbed again: at half of one exactly, it would be again and again.
    """

    def __init__(self, left: Camera, right: Camera) -> None:
        self.cameras = [left, right]
        self.live = left.live
        self.fps = left.fps
        self._interval_s = 1 / self.fps if self.fps else 1 / 30
        self._last_s: float | None = None

    def grab(self) -> Grabbed:
        """The next pair, not yet decoded."""
        if not self.live:
            return self._grabbed_frame()
        times_s = [_grabbed(camera) for camera in self.cameras]
        for _ in range(_MOST_CATCHING_UP):
            if abs(times_s[1] - times_s[0]) <= _IN_STEP * self._interval_s:
                break
            behind = int(times_s[1] < times_s[0])
            times_s[behind] = _grabbed(self.cameras[behind])
        if self._last_s is not None and 0 < (interval_s := times_s[0] - self._last_s) < 1:
            self._interval_s = 0.9 * self._interval_s + 0.1 * interval_s
        self._last_s = times_s[0]
        return Grabbed(*times_s)

    def _grabbed_frame(self) -> Grabbed:
        """Frame n of one video belongs to frame n of the other, whenever it is read."""
        now_s, of_right_s = (camera.grab() for camera in self.cameras)
        if now_s is not None and of_right_s is not None:
            return Grabbed(now_s, now_s)
        if now_s is None and of_right_s is None:
            raise LostError(self.cameras[0].role)
        ended, goes_on = self.cameras if now_s is None else reversed(self.cameras)
        raise LostError(ended.role, f"{ended.role} is at its end, and {goes_on.role} would go on")

    def retrieve(self) -> tuple[Picture, Picture]:
        """The grabbed pair, RGB."""
        left, right = (_retrieved(camera) for camera in self.cameras)
        return left, right

    def rewind(self) -> None:
        """Both videos start again."""
        for camera in self.cameras:
            camera.rewind()


class SideBySide:
    """One device, stream or video with both eyes in one picture."""

    def __init__(self, camera: Camera) -> None:
        self.cameras = [camera]
        self.live = camera.live
        self.fps = camera.fps

    def grab(self) -> Grabbed:
        """The next pair, not yet decoded; both eyes were taken at once."""
        time_s = _grabbed(self.cameras[0])
        return Grabbed(time_s, time_s)

    def retrieve(self) -> tuple[Picture, Picture]:
        """The grabbed pair, RGB."""
        return halves(_retrieved(self.cameras[0]), self.cameras[0].role)

    def rewind(self) -> None:
        """The video starts again."""
        self.cameras[0].rewind()


class PicturePairs:
    """Pictures in files."""

    live = False

    def __init__(self, pairs: Pairs, role: str) -> None:
        self.cameras: list[Camera] = []
        self.fps: float | None = None
        self._files = list(pairs.files.values())
        self._role = role
        self._at = -1

    def grab(self) -> Grabbed:
        """The next pair, not yet decoded."""
        self._at += 1
        if self._at >= len(self._files):
            raise LostError(self._role)
        now_s = time.monotonic()
        return Grabbed(now_s, now_s)

    def retrieve(self) -> tuple[Picture, Picture]:
        """The grabbed pair, RGB."""
        pictures = [read_rgb(path) for path in self._files[self._at]]
        return (pictures[0], pictures[1]) if len(pictures) == 2 else halves(pictures[0], self._role)

    def rewind(self) -> None:
        """From the first pair again."""
        self._at = -1


def halves(both: Picture, role: str) -> tuple[Picture, Picture]:
    """Left and right half of a picture.

    Raises:
        CameraError: its width is odd.
    """
    width = both.shape[1]
    if width % 2:
        raise CameraError(f"{role}: is {width} px wide, so it does not hold two eyes of one width side by side")
    return np.ascontiguousarray(both[:, : width // 2]), np.ascontiguousarray(both[:, width // 2 :])


def _grabbed(camera: Camera) -> float:
    time_s = camera.grab()
    if time_s is None:
        raise LostError(camera.role)
    return time_s


def _retrieved(camera: Camera) -> Picture:
    picture = camera.retrieve()
    if picture is None:
        raise DamagedError(camera.role)
    return picture
