"""Cameras, network streams and videos through OpenCV: set options, read them back, compare; BGR becomes RGB here."""

import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.calibration.settings import CameraSettings
from foundation_stereo_depth.data import file_kinds
from foundation_stereo_depth.data.codecs import silence_opencv
from foundation_stereo_depth.data.videos import VideoProgress, check_frame_size, open_video
from foundation_stereo_depth.errors import CameraError, DataError
from foundation_stereo_depth.files import name_for_opencv
from live_camera.options import CameraOptions

logger = logging.getLogger(__name__)

Frame = UInt8[np.ndarray, "_ _ 3"]
"""RGB, of any size: whether both cameras give the same one is checked later."""

_STABLE_PATHS = Path("/dev/v4l/by-path")
"""Linux keeps a link per port here. The names in by-id clash for two cameras of one model."""
_STREAM_TIMEOUT_MS = 5000
_PLAUSIBLE_AGE_S = 2.0
"""A driver's time stamp that is older than this comes from another clock than `time.monotonic`."""
_MANUAL_EXPOSURE, _AUTO_EXPOSURE = (1.0, 3.0) if sys.platform == "linux" else (0.25, 0.75)
"""The meaning of CAP_PROP_AUTO_EXPOSURE depends on the backend: V4L2 here, DirectShow and Media Foundation there."""
_AUTOMATIC: dict[int, tuple[int, float, float]] = {
    cv2.CAP_PROP_FOCUS: (cv2.CAP_PROP_AUTOFOCUS, 0.0, 1.0),
    cv2.CAP_PROP_EXPOSURE: (cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL_EXPOSURE, _AUTO_EXPOSURE),
    cv2.CAP_PROP_WB_TEMPERATURE: (cv2.CAP_PROP_AUTO_WB, 0.0, 1.0),
}
"""Setting -> what chooses it automatically, and the values that switch that off and on."""
_ABSENT = (-1.0, 0.0)
"""What backends of OpenCV return for a control that a camera does not have."""
_BACKEND = {"linux": cv2.CAP_V4L2, "darwin": cv2.CAP_AVFOUNDATION, "win32": cv2.CAP_DSHOW}.get(
    sys.platform, cv2.CAP_ANY
)
"""Lists cameras and opens them by index: another backend may count them in another order."""
_COMMON_SIZES = ((640, 480), (1280, 480), (1280, 720), (2560, 720), (1920, 1080), (3840, 1080))
"""Usual sizes of webcams, and of stereo webcams with both views side by side."""


@dataclass(frozen=True, kw_only=True)
class CameraInfo:
    """A camera of this machine.

    Attributes:
        index: the index by which OpenCV opens it.
        name: the name that the device reports.
        path: stable as long as the camera stays in its port, or else its device; empty where the system has none.
        backend: OpenCV's name of the driver that lists it.
    """

    index: int
    name: str
    path: str
    backend: str


@dataclass(frozen=True, kw_only=True)
class FrameSize:
    """A frame size that a camera supports, px, and its frame rate there."""

    width: int
    height: int
    fps: float


def find_cameras() -> list[CameraInfo]:
    """Return the cameras of this machine, by index."""
    from cv2_enumerate_cameras import enumerate_cameras  # noqa: PLC0415 (it loads drivers; files need none)

    return sorted(
        (
            CameraInfo(
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
    """Return the link that names the port of device `index`; None where the system keeps none."""
    if not _STABLE_PATHS.is_dir():
        return None
    links = (link for link in sorted(_STABLE_PATHS.iterdir()) if link.resolve() == Path(f"/dev/video{index}"))
    return next((str(link) for link in links), None)


def probe_sizes(index: int, fourcc: str = "MJPG") -> list[FrameSize]:
    """Return the sizes that a camera sets when the common ones are requested; none where it does not open.

    Drivers set the nearest size that they support, so the size is read back after each request.
    """
    with silence_opencv():
        capture = cv2.VideoCapture(index, _BACKEND)
    try:
        supported: dict[tuple[int, int], FrameSize] = {}
        if not capture.isOpened():
            return []
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*fourcc))
        for width, height in _COMMON_SIZES:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, width)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, height)
            size = round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            supported[size] = FrameSize(width=size[0], height=size[1], fps=capture.get(cv2.CAP_PROP_FPS))
        return list(supported.values())
    finally:
        capture.release()


class Camera:
    """One device, network stream or video.

    Settings that a device does not accept are logged as warnings, each time it is opened.

    Args:
        address: a device's index or path, a stream's URL, or a video's path.
        role: its name in messages, such as `--left 0`.
        options: settings that are requested of a device.

    Attributes:
        live: frames arrive at their own time, and may be missed; a video waits.
        is_device: it is a device of this machine, whose settings can be changed.

    Raises:
        CameraError: it cannot be opened.
    """

    def __init__(self, address: str, role: str, options: CameraOptions) -> None:
        self.role = role
        self.live = not is_video(address)
        self.is_device = is_device(address)
        self._options = options
        # An index may name another camera once this one has been unplugged; its port does not.
        self._address = (stable_path(int(address)) or address) if address.isdecimal() else address
        self._locked: dict[int, float] = {}
        self._absent: set[int] = set()
        self._reported: set[str] = set()
        self._progress = VideoProgress()
        name_for_opencv(self._address, CameraError)
        if is_pipeline(address) and not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
            raise CameraError(
                f"{role}: is a GStreamer pipeline, and the OpenCV that is installed (the one of PyPI) is built without "
                "GStreamer; name the device (/dev/video0), a network stream (rtsp://...) or a video"
            )
        self._capture = self._open()
        if not self._capture.isOpened():
            self._capture.release()
            raise CameraError(self._explain_failure())
        self._check_size()

    @property
    def fps(self) -> float | None:
        """Frames per second, as the camera or the video reports it; None where the figure is not plausible."""
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        return rate if 0 < rate < 1000 else None

    def grab(self) -> float | None:
        """Grab the next frame without decoding it; return its time in s of `time.monotonic`, None if none came.

        The time is the driver's where it is plausible, else the moment at which the frame arrived.
        """
        if not self._capture.grab():
            return None
        now_s = time.monotonic()
        if not self.live:
            self._progress.count(self._capture)
        if self.is_device:
            driver_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if 0 <= now_s - driver_s < _PLAUSIBLE_AGE_S:
                return driver_s
        return now_s

    def retrieve(self) -> Frame | None:
        """Return the grabbed frame, RGB; None if it cannot be decoded."""
        decoded, bgr = self._capture.retrieve()
        if not decoded:
            return None
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def explain_early_end(self) -> str | None:
        """Return one line where a video ended well before the time that it states; else None."""
        return None if self.live else self._progress.explain_early_end(Path(self._address), self._capture)

    def reopen(self) -> bool:
        """Try once to open it again, with the settings it had; return whether that worked."""
        self._progress = VideoProgress()
        self._capture.release()
        self._capture = self._open()
        return self._capture.isOpened()

    def rewind(self) -> None:
        """Start a video again.

        Raises:
            CameraError: it cannot be opened any more.
        """
        if not self.reopen():
            raise CameraError(self._explain_failure())

    def read_setting(self, name: int) -> float | None:
        """Return the value of an OpenCV property; None where the camera was found to have no such control."""
        return None if name in self._absent else self._capture.get(name)

    def read_settings(self) -> CameraSettings:
        """Return focus, exposure, gain and white balance as the camera reports them."""
        return CameraSettings(
            focus=self.read_setting(cv2.CAP_PROP_FOCUS),
            exposure=self.read_setting(cv2.CAP_PROP_EXPOSURE),
            gain=self.read_setting(cv2.CAP_PROP_GAIN),
            white_balance=self.read_setting(cv2.CAP_PROP_WB_TEMPERATURE),
        )

    def lock(self, values: Mapping[int, float | None]) -> None:
        """Switch the automatic control of these settings off and set them, also after a reopening.

        Args:
            values: OpenCV property -> value; None keeps the present one.
        """
        self._apply(self._capture, _switches(values, off=True))  # an automatic control refuses values
        self._locked |= {name: self._capture.get(name) if value is None else value for name, value in values.items()}
        self._apply(self._capture, {name: self._locked[name] for name in values})

    def unlock(self, names: Mapping[int, object]) -> None:
        """Have the camera choose these settings again."""
        self._locked = {name: value for name, value in self._locked.items() if name not in names}
        self._apply(self._capture, _switches(names, off=False))

    def find_changed(self) -> str | None:
        """Return one line where a locked setting is not what it was locked to, or automatic again; else None."""
        for name, value in self._locked.items():
            if name in self._absent:
                continue
            for automatic, off in _switches({name: None}, off=True).items():
                if automatic not in self._absent and abs(self._capture.get(automatic) - off) > _TOLERANCE:
                    return f"{self.role}: {_SETTING_NAMES[automatic]} is on again"
            if abs((actual := self._capture.get(name)) - value) > _TOLERANCE:
                return f"{self.role}: {_SETTING_NAMES[name]} was locked at {value:g}, and is {actual:g} now"
        return None

    def release(self) -> None:
        """Close the device or file."""
        self._capture.release()

    def _open(self) -> Any:
        with silence_opencv():
            capture = self._open_capture()
        if self.is_device and capture.isOpened():
            for name, value in _switches(self._initially_automatic(), off=False).items():
                capture.set(name, value)  # the last program may have left the camera locked
            self._apply(capture, self._requested_settings() | _switches(self._locked, off=True) | self._locked)
        return capture

    def _open_capture(self) -> Any:
        if not self.live:
            path = Path(self._address)
            if not path.is_file():  # a pipe would be waited for
                raise CameraError(f"{self.role}: {'is not a regular file' if path.exists() else 'no such file'}")
            try:
                return open_video(path)
            except DataError as error:
                raise CameraError(self._name_role(error)) from error
        if is_pipeline(self._address):
            return cv2.VideoCapture(self._address, cv2.CAP_GSTREAMER)
        if not self.is_device:
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _STREAM_TIMEOUT_MS]
            timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, _STREAM_TIMEOUT_MS]
            return cv2.VideoCapture(self._address, cv2.CAP_FFMPEG, timeouts)
        if self._address.isdecimal():
            return cv2.VideoCapture(int(self._address), _BACKEND)
        return cv2.VideoCapture(str(Path(self._address).resolve()), cv2.CAP_V4L2)

    def _initially_automatic(self) -> dict[int, None]:
        """Return the settings that the camera is to choose. Autofocus is left as it is, unless it is requested."""
        names = [cv2.CAP_PROP_EXPOSURE, cv2.CAP_PROP_WB_TEMPERATURE]
        names += [cv2.CAP_PROP_FOCUS] if self._options.focus == "auto" else []
        return dict.fromkeys(name for name in names if name not in self._locked)

    def _requested_settings(self) -> dict[int, float]:
        """Return what the options request. The pixel format comes first: sizes and rates depend on it."""
        options = self._options
        settings: dict[int, float] = {cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*options.fourcc))}
        if options.camera_width is not None and options.camera_height is not None:
            settings[cv2.CAP_PROP_FRAME_WIDTH], settings[cv2.CAP_PROP_FRAME_HEIGHT] = (
                options.camera_width,
                options.camera_height,
            )
        if options.fps is not None:
            settings[cv2.CAP_PROP_FPS] = options.fps
        return settings

    def _apply(self, capture: Any, settings: Mapping[int, float]) -> None:
        """Set all, then read all back; log once each setting that differs from the request."""
        refused = {name for name, value in settings.items() if not capture.set(name, value)}
        for name, value in settings.items():
            actual = capture.get(name)
            if name in refused and actual in _ABSENT:
                self._absent.add(name)
            if abs(actual - value) <= _TOLERANCE or (name in self._absent and name in _OPTIONAL):
                continue
            message = (
                f"{self.role}: {_SETTING_NAMES[name]} {_format_setting(name, value)} was requested, the camera "
                f"{'refuses it and ' if name in refused else ''}uses {_format_setting(name, actual)}"
            )
            if name == cv2.CAP_PROP_AUTOFOCUS and value == 0:
                message += "; a calibration holds only while the lens does not move"
            if message not in self._reported:  # a camera that is reopened every second warns once
                logger.warning(message)
            self._reported.add(message)

    def _check_size(self) -> None:
        width, height = (self._capture.get(name) for name in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        try:
            check_frame_size(Path(self._address), width, height)
        except DataError as error:
            self._capture.release()
            raise CameraError(self._name_role(error)) from error

    def _name_role(self, error: DataError) -> str:
        return f"{self.role}: {str(error).removeprefix(f'{Path(self._address)}: ')}"

    def _explain_failure(self) -> str:
        if is_pipeline(self._address):
            return (
                f"{self.role}: GStreamer does not run this pipeline; does gst-launch-1.0, and does it end in appsink?"
            )
        if not self.is_device:
            return f"{self.role}: no stream answers within {_STREAM_TIMEOUT_MS // 1000} s; is the address right?"
        found = ", ".join(f"{camera.index} ({camera.name})" for camera in find_cameras())
        return (
            f"{self.role}: the camera does not open; found: {found or 'no camera at all'}. Another program may be "
            "using it, or the permission to read it is missing (on Linux: group video)"
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
    cv2.CAP_PROP_FOURCC: "pixel format",
    cv2.CAP_PROP_FOCUS: "focus",
    cv2.CAP_PROP_AUTOFOCUS: "autofocus",
}
_OPTIONAL = {
    *_AUTOMATIC,
    *(automatic for automatic, _, _ in _AUTOMATIC.values()),
    cv2.CAP_PROP_GAIN,
}
"""Settings that many cameras lack, which is no reason for a warning."""
_SWITCHES = {automatic for automatic, _, _ in _AUTOMATIC.values()}
_TOLERANCE = 0.5


def _switches(names: Mapping[int, object], *, off: bool) -> dict[int, float]:
    """Return what switches the automatic control of these settings off, or on: OpenCV property -> value."""
    return {_AUTOMATIC[name][0]: _AUTOMATIC[name][1 if off else 2] for name in names if name in _AUTOMATIC}


def _format_setting(name: int, value: float) -> str:
    if name == cv2.CAP_PROP_FOURCC:
        letters = int(value).to_bytes(4, "little", signed=value < 0).decode("ascii", "replace")
        return letters if letters.isprintable() and value > 0 else "an unknown format"
    if name in _SWITCHES:
        return "off" if any(value == off for switch, off, _ in _AUTOMATIC.values() if switch == name) else "on"
    return f"{value:g}"


def is_device(address: str) -> bool:
    """Return True for a device's index or path."""
    return address.isdecimal() or address.startswith("/dev/")


def is_stream(address: str) -> bool:
    """Return True for a network stream's URL, and for a GStreamer pipeline."""
    return "://" in address or is_pipeline(address)


def is_pipeline(address: str) -> bool:
    """Return True for a GStreamer pipeline: elements with ` ! ` between them."""
    return re.search(r"\s!\s|^\w+src\b[^!]*!", address) is not None


def is_video(address: str) -> bool:
    """Return True for the name of a video file."""
    return not is_device(address) and not is_stream(address) and file_kinds.is_video(address)


def read_previews(cameras: list[CameraInfo]) -> Iterator[tuple[CameraInfo, Frame | None]]:
    """Yield one frame of each camera, RGB, after its exposure has settled; None where it gives none."""
    for info in cameras:
        try:
            camera = Camera(str(info.index), f"camera {info.index}", CameraOptions())
        except CameraError:  # another program uses it: the caller reports it
            yield info, None
            continue
        try:
            times_s = [camera.grab() for _ in range(10)]
            yield info, camera.retrieve() if times_s[-1] is not None else None
        finally:
            camera.release()
