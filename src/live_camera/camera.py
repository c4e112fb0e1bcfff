"""Cameras, network streams and videos, opened by OpenCV: set, read back, compared. BGR becomes RGB here, once."""

import os
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.data.pairs import VIDEO_SUFFIXES
from foundation_stereo_depth.errors import CameraError
from live_camera.options import CameraOptions

Picture = UInt8[np.ndarray, "_ _ 3"]
"""RGB; of any size, since two eyes may differ until that is found out."""

_STABLE_PATHS = Path("/dev/v4l/by-path")
"""Linux keeps a link per port here. Its by-id has one name for two cameras of a kind."""
_STREAM_TIMEOUT_MS = 5000
_PLAUSIBLE_AGE_S = 2.0
"""A driver's time stamp older than this is of another clock than ours."""
_MANUAL_EXPOSURE, _AUTO_EXPOSURE = (1.0, 3.0) if sys.platform == "linux" else (0.25, 0.75)
"""What CAP_PROP_AUTO_EXPOSURE means depends on the backend: V4L2 here, DirectShow and Media Foundation there."""
_BACKEND = {"linux": cv2.CAP_V4L2, "darwin": cv2.CAP_AVFOUNDATION, "win32": cv2.CAP_DSHOW}.get(
    sys.platform, cv2.CAP_ANY
)
"""Lists cameras and opens them by index: another backend may count them in another order."""
_COMMON_SIZES = ((640, 480), (1280, 480), (1280, 720), (2560, 720), (1920, 1080), (3840, 1080))
"""What webcams offer, and stereo webcams with both eyes side by side."""


@dataclass(frozen=True, kw_only=True)
class FoundCamera:
    """A camera of this machine.

    Attributes:
        index: by which OpenCV opens it.
        name: what it calls itself.
        path: what stays the same as long as it stays in its port, or its device; empty where the system has none.
        backend: OpenCV's name of the driver that lists it.
    """

    index: int
    name: str
    path: str
    backend: str


@dataclass(frozen=True, kw_only=True)
class OfferedSize:
    """A size that a camera gives when it is asked for, px, and its pictures a second there."""

    width: int
    height: int
    fps: float


def find_cameras() -> list[FoundCamera]:
    """The cameras of this machine, by index."""
    from cv2_enumerate_cameras import enumerate_cameras  # noqa: PLC0415 (it loads drivers; files need none)

    return sorted(
        (
            FoundCamera(
                index=found.index,
                name=found.name,
                path=stable_path(found.index) or found.path or "",
                backend=cv2.videoio_registry.getBackendName(found.backend),
            )
            for found in enumerate_cameras(_BACKEND)
        ),
        key=lambda camera: camera.index,
    )


def stable_path(index: int) -> str | None:
    """The link that names the port of device `index`, where the system keeps one."""
    if not _STABLE_PATHS.is_dir():
        return None
    links = (link for link in sorted(_STABLE_PATHS.iterdir()) if link.resolve() == Path(f"/dev/video{index}"))
    return next((str(link) for link in links), None)


def offered_sizes(index: int, fourcc: str = "MJPG") -> list[OfferedSize]:
    """The common sizes that a camera gives when asked, each once; none where it does not open.

    Drivers answer with the nearest that they have, so that only answers count, not questions.
    """
    with quiet_opencv():
        capture = cv2.VideoCapture(index, _BACKEND)
    try:
        offered: dict[tuple[int, int], OfferedSize] = {}
        if not capture.isOpened():
            return []
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc))
        for asked in _COMMON_SIZES:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, asked[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, asked[1])
            given = round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            offered[given] = OfferedSize(width=given[0], height=given[1], fps=capture.get(cv2.CAP_PROP_FPS))
        return list(offered.values())
    finally:
        capture.release()


class Camera:
    """One device, network stream or video.

    Args:
        address: a device's index or path, a stream's URL, or a video's path.
        role: what messages call it, such as `--left 0`.
        options: what is asked of a device.

    Attributes:
        live: pictures come when they come, and may be missed; a video waits.
        settings_missed: one line for each setting that was asked for and not given.

    Raises:
        CameraError: it cannot be opened.
    """

    def __init__(self, address: str, role: str, options: CameraOptions) -> None:
        self.role = role
        self.live = not is_video(address)
        self.settings_missed: list[str] = []
        self._options = options
        self.is_device = is_device(address)
        # An index may name another camera once this one has been unplugged; its port does not.
        self._address = (stable_path(int(address)) or address) if address.isdecimal() else address
        self._locked: dict[int, float] = {}
        self._capture = self._opened()
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(self._why_not())

    @property
    def fps(self) -> float | None:
        """Pictures a second, as the camera or the video says; None where it says nothing sensible."""
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        return rate if 0 < rate < 1000 else None

    def grab(self) -> float | None:
        """Takes the next picture without decoding it; its time in seconds of `time.monotonic`, None if none comes.

        A device's driver knows best when the picture was taken; elsewhere it is the moment at which it came.
        """
        if not self._capture.grab():
            return None
        now_s = time.monotonic()
        if self.is_device:
            driver_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if 0 <= now_s - driver_s < _PLAUSIBLE_AGE_S:
                return driver_s
        return now_s

    def retrieve(self) -> Picture | None:
        """The grabbed picture in RGB; None if it cannot be decoded."""
        decoded, bgr = self._capture.retrieve()
        if not decoded:
            return None
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def reopen(self) -> bool:
        """Tries once to open again what was lost, with the settings it had; True where it is back."""
        self._capture.release()
        self._capture = self._opened()
        return self._capture.isOpened()

    def rewind(self) -> None:
        """A video starts again.

        Raises:
            CameraError: it cannot be opened any more.
        """
        if not self.reopen():
            raise CameraError(self._why_not())

    def chosen_colours(self) -> dict[int, float]:
        """What the camera's automatic chose for exposure, gain and white balance: OpenCV property -> value."""
        wanted = {
            cv2.CAP_PROP_EXPOSURE: self._options.exposure,
            cv2.CAP_PROP_GAIN: self._options.exposure if self._options.exposure == "lock" else "auto",
            cv2.CAP_PROP_WB_TEMPERATURE: self._options.white_balance,
        }
        return {
            name: self._capture.get(name) if value == "lock" else float(value)
            for name, value in wanted.items()
            if value != "auto"
        }

    def lock_colours(self, values: dict[int, float]) -> None:
        """Switches the automatics off and keeps these values, from now on and after a reopening."""
        self._locked = values
        self.settings_missed += _missed(self._capture, self._locks(), self.role)

    def release(self) -> None:
        """Gives the camera back."""
        self._capture.release()

    def _locks(self) -> dict[int, float]:
        locks: dict[int, float] = {}
        if cv2.CAP_PROP_EXPOSURE in self._locked:
            locks[cv2.CAP_PROP_AUTO_EXPOSURE] = _MANUAL_EXPOSURE
        if cv2.CAP_PROP_WB_TEMPERATURE in self._locked:
            locks[cv2.CAP_PROP_AUTO_WB] = 0.0
        return locks | self._locked

    def _opened(self) -> Any:
        with quiet_opencv():
            capture = self._found()
        if self.is_device and capture.isOpened():
            if not self._locked:  # the last program may have left the camera locked
                capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _AUTO_EXPOSURE)
                capture.set(cv2.CAP_PROP_AUTO_WB, 1.0)
            self.settings_missed = _missed(capture, self._settings() | self._locks(), self.role)
        return capture

    def _found(self) -> Any:
        if not self.live:
            return cv2.VideoCapture(self._address)
        if not self.is_device:
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _STREAM_TIMEOUT_MS]
            timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, _STREAM_TIMEOUT_MS]
            return cv2.VideoCapture(self._address, cv2.CAP_FFMPEG, timeouts)
        if self._address.isdecimal():
            return cv2.VideoCapture(int(self._address), _BACKEND)
        return cv2.VideoCapture(str(Path(self._address).resolve()), cv2.CAP_V4L2)

    def _settings(self) -> dict[int, float]:
        """What is asked of a device. The format comes first: it decides which sizes and rates there are."""
        options = self._options
        settings: dict[int, float] = {cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*options.fourcc))}
        if options.width is not None and options.height is not None:
            settings[cv2.CAP_PROP_FRAME_WIDTH], settings[cv2.CAP_PROP_FRAME_HEIGHT] = options.width, options.height
        if options.fps is not None:
            settings[cv2.CAP_PROP_FPS] = options.fps
        return settings

    def _why_not(self) -> str:
        if not self.live:
            missing = not Path(self._address).is_file()
            return f"{self.role}: {'no such file' if missing else 'is not a video that can be decoded'}"
        if not self.is_device:
            return f"{self.role}: no stream answers there within {_STREAM_TIMEOUT_MS // 1000} s; is its address right?"
        there = ", ".join(f"{camera.index} ({camera.name})" for camera in find_cameras())
        return (
            f"{self.role}: no camera opens there; there {f'are {there}' if there else 'is none at all'}. Another "
            "program may hold it, or the permission is missing (group video)"
        )


_SETTING_NAMES = {
    cv2.CAP_PROP_FRAME_WIDTH: "width",
    cv2.CAP_PROP_FRAME_HEIGHT: "height",
    cv2.CAP_PROP_FPS: "fps",
    cv2.CAP_PROP_EXPOSURE: "exposure",
    cv2.CAP_PROP_GAIN: "gain",
    cv2.CAP_PROP_WB_TEMPERATURE: "white balance",
    cv2.CAP_PROP_AUTO_EXPOSURE: "automatic exposure",
    cv2.CAP_PROP_AUTO_WB: "automatic white balance",
    cv2.CAP_PROP_FOURCC: "format",
}


def _missed(capture: Any, settings: dict[int, float], role: str) -> list[str]:
    """Sets all, then reads all back: one line for each that is not as asked."""
    for name, value in settings.items():
        capture.set(name, value)
    read = {name: capture.get(name) for name in settings}
    return [
        f"{role}: {_SETTING_NAMES[name]} {_shown(name, value)} was asked for, {_shown(name, read[name])} is set"
        for name, value in settings.items()
        if abs(read[name] - value) > 0.5
    ]


def _shown(name: int, value: float) -> str:
    if name == cv2.CAP_PROP_FOURCC:
        letters = int(value).to_bytes(4, "little", signed=value < 0).decode("ascii", "replace")
        return letters if letters.isprintable() and value > 0 else "of its own"
    return f"{value:g}"


@contextmanager
def quiet_opencv() -> Generator[None]:
    """OpenCV says nothing of its own on standard error meanwhile; whoever uses this says what did not work."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its video reader's; looked at once, at the first opening
    logging = cv2.utils.logging
    before = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(before)


def is_device(address: str) -> bool:
    """True for a device's index or path."""
    return address.isdecimal() or address.startswith("/dev/")


def is_stream(address: str) -> bool:
    """True for a network stream's URL."""
    return "://" in address


def is_video(address: str) -> bool:
    """True for the name of a video file."""
    return not is_device(address) and not is_stream(address) and Path(address).suffix.lower() in VIDEO_SUFFIXES


def preview_pictures(cameras: list[FoundCamera]) -> Iterator[tuple[FoundCamera, Picture | None]]:
    """One picture of each camera, RGB, after a moment in which its exposure settles; None where it gives none."""
    for found in cameras:
        try:
            camera = Camera(str(found.index), f"camera {found.index}", CameraOptions())
        except CameraError:  # another program holds it: the caller says so
            yield found, None
            continue
        try:
            grabbed = [camera.grab() for _ in range(10)]
            yield found, camera.retrieve() if grabbed[-1] is not None else None
        finally:
            camera.release()
