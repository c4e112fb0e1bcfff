"""Two cameras -> stereo pairs, read in a thread so that the newest pair is always ready: grab both, then decode both.

    with open_rig(source, camera) as rig:
        for frame in rig:
            ...

A live rig drops pairs that were not taken in time; videos and images wait, so that none of their pairs is dropped.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.calibration.settings import CameraSettings, RigSettings
from foundation_stereo_depth.data.pairs import Pairs, find_pairs
from foundation_stereo_depth.errors import CameraError, UserError
from live_camera.camera import Camera, Frame, is_device, is_stream, is_video
from live_camera.camera_settings import lock_settings
from live_camera.options import CameraOptions, SourceOptions
from live_camera.sources import (
    CorruptFrameError,
    ImagePairs,
    NoFrameError,
    SideBySideCamera,
    StereoSource,
    TwoCameras,
    arrange_views,
)

logger = logging.getLogger(__name__)

_REOPEN_EVERY_S = 1.0
_BUFFERED_FRAMES = 5
"""While one camera was lost, the other one's driver has kept this many old frames."""
_MAX_CORRUPT_IN_A_ROW = 10
"""Cheap cameras send a corrupt frame now and then; this many in a row count as a lost camera."""
_SKEW_PATIENCE_S = 2.0
_STALLED_S, _STALLED_PAIRS = 2.0, 3
"""No pair for so long, and for as long as so many pairs take: something is wrong; drivers give up after ten seconds."""
_SETTINGS_EVERY_S = 5.0
"""Between two checks of the settings of the cameras, which a driver or another program may change."""


@dataclass(frozen=True, kw_only=True)
class StereoFrame:
    """A pair as the cameras gave it.

    Attributes:
        left_rgb, right_rgb: raw, RGB, of one size.
        captured_at_s: when the later of the two was taken, s of `time.monotonic`.
        skew_ms: how much later the right frame was taken than the left one; negative where it was earlier.
    """

    left_rgb: UInt8[np.ndarray, "H W 3"]
    right_rgb: UInt8[np.ndarray, "H W 3"]
    captured_at_s: float
    skew_ms: float


class Rig:
    """Stereo pairs, read in a thread of its own; to be used in a `with`.

    Args:
        cameras: the source of the pairs.
        source: which camera is which, and how much skew is allowed.
        fps: the rate at which recordings are played, pairs per second; None plays as fast as pairs are taken.
        nominal_fps: the rate of the source, where it is known otherwise than by its files.
        settings: of the cameras of the left and the right view; None for anything but devices.

    Attributes:
        source, settings: as given.
        changed_setting: a setting that is not what it was locked to, in one line; None where there is none.
        waiting_for: the lost camera that is being reopened; None where there is none.
        skew_dropped: number of pairs dropped because their frames were too far apart in time.
        skew_ms: skew of the newest pair, dropped or not.
        losses: how often a camera was lost.
        corrupt_frames: number of frames that could not be decoded, and were dropped.
        on_frame: called with every pair, in the rig's own thread, whether it is taken or not; None calls nothing.
    """

    def __init__(
        self,
        cameras: StereoSource,
        source: SourceOptions,
        *,
        fps: float | None = None,
        nominal_fps: float | None = None,
        settings: RigSettings | None = None,
    ) -> None:
        self._cameras = cameras
        self._nominal_fps = nominal_fps
        self.source = source
        self.settings = settings
        self.changed_setting: str | None = None
        self._settings_checked_at_s = time.monotonic()
        self._interval_s = 1 / fps if fps and not cameras.live else 0.0
        self._changed = threading.Condition()
        self._newest: StereoFrame | None = None
        self._failure: BaseException | None = None
        self._finished = False
        self._stop = threading.Event()
        self._shape: tuple[int, ...] | None = None
        self.waiting_for: str | None = None
        self.skew_dropped = 0
        self.skew_ms = 0.0
        self.losses = 0
        self.corrupt_frames = 0
        self.on_frame: Callable[[StereoFrame], None] | None = None
        self._corrupt_in_a_row = 0
        self._skewed_since_s: float | None = None
        self._skew_warning = ""
        self._last_pair_at_s: float | None = None
        self._pairs_since_rewind = 0
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)

    @property
    def live(self) -> bool:
        """True for cameras and streams, False for files."""
        return self._cameras.live

    @property
    def fps(self) -> float | None:
        """Pairs per second of the cameras or the recording; None where that is unknown."""
        return self._nominal_fps or self._cameras.fps

    @property
    def warning(self) -> str | None:
        """Why no pair arrives, in one line; None while pairs arrive."""
        role = self.waiting_for
        skewed_since_s = self._skewed_since_s
        if role is None and skewed_since_s is not None and time.monotonic() - skewed_since_s > _SKEW_PATIENCE_S:
            return self._skew_warning
        if role is None:
            last_pair_at_s = self._last_pair_at_s
            patience_s = max(_STALLED_S, _STALLED_PAIRS / self.fps if self.fps else 0)
            stalled = last_pair_at_s is not None and time.monotonic() - last_pair_at_s > patience_s
            return "no frames from the cameras; waiting" if stalled and self.live else None
        if self._shape is not None:
            return f"{role} was disconnected; waiting for it to come back"
        return (
            f"{role} gives no frame; waiting. Two cameras may exceed the bandwidth of one USB port: use a port for "
            "each, or a smaller --width and --height, or --fourcc MJPG"
        )

    @property
    def ended(self) -> bool:
        """True once a recording is at its end and its last pair has been taken."""
        with self._changed:
            return self._finished and self._newest is None and self._failure is None

    def __enter__(self) -> "Rig":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        # A driver may block the thread for seconds after its camera was unplugged; the thread is a daemon.
        self._thread.join(timeout=3)
        if not self._thread.is_alive():
            for camera in self._cameras.cameras:
                camera.release()

    def next(self, timeout_s: float) -> StereoFrame | None:
        """Take the newest pair that was not taken yet; None where none arrives in that time, or none will.

        Raises:
            UserError: the two frames differ in size, or a file cannot be read.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._newest is not None or self._finished or self._failure is not None, timeout_s
            )
            frame, self._newest = self._newest, None
            self._changed.notify_all()
            if frame is None and self._failure is not None:
                raise self._failure
            return frame

    def __iter__(self) -> Iterator[StereoFrame]:
        """Yield pairs, each the newest; log a warning while a camera is lost; end with the recording."""
        logged: str | None = None
        while not self.ended:
            frame = self.next(timeout_s=0.5)
            if frame is not None:
                yield frame
            elif self.warning != logged:
                logged = self.warning
                if logged is not None:
                    logger.warning(logged)

    def _run(self) -> None:
        try:
            due_s = time.monotonic()
            while not self._stop.wait(max(0.0, due_s - time.monotonic()) if self._interval_s else 0):
                self._wait_until_taken()
                frame = self._read_pair()
                if frame is not None:
                    self._publish(frame)
                    self._check_settings()
                    due_s = max(due_s, time.monotonic() - self._interval_s) + self._interval_s
        except BaseException as error:  # raised again by `next`
            self._failure = error
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _check_settings(self) -> None:
        """Find settings that changed by themselves, every few seconds: a lens that moved voids the calibration."""
        now_s = time.monotonic()
        if self.settings is not None and now_s - self._settings_checked_at_s > _SETTINGS_EVERY_S:
            self._settings_checked_at_s = now_s
            changed = (camera.find_changed() for camera in self._cameras.cameras)
            self.changed_setting = next((line for line in changed if line is not None), None)

    def _read_pair(self) -> StereoFrame | None:
        """Return the next pair; None where it is dropped, or a camera is lost."""
        try:
            times = self._cameras.grab()
            self.waiting_for = None
            self.skew_ms = 1000 * (times.right_s - times.left_s)
            if abs(self.skew_ms) > self.source.max_skew_ms:
                self._count_skewed_pair()
                return None
            self._skewed_since_s = None
            left, right = self._cameras.retrieve()
            self._corrupt_in_a_row = 0
        except CorruptFrameError as corrupt:
            self._count_corrupt_frame(corrupt.role)
            return None
        except NoFrameError as lost:
            self._handle_loss(lost.role, lost.note)
            return None
        self._check_size(left, right)
        self._pairs_since_rewind += 1
        left, right = arrange_views(left, right, self.source)
        return StereoFrame(
            left_rgb=left,
            right_rgb=right,
            captured_at_s=max(times),
            skew_ms=-self.skew_ms if self.source.swap else self.skew_ms,
        )

    def _count_skewed_pair(self) -> None:
        self.skew_dropped += 1
        if self._skewed_since_s is None:
            self._skewed_since_s = time.monotonic()
            # Kept as it is: with figures that change, the same warning would be logged for every pair.
            self._skew_warning = (
                f"every pair is dropped: left and right are {abs(self.skew_ms):.0f} ms apart, but --max-skew-ms is "
                f"{self.source.max_skew_ms:g}"
            )

    def _count_corrupt_frame(self, role: str) -> None:
        self.corrupt_frames += 1
        self._corrupt_in_a_row += 1
        if self._corrupt_in_a_row == _MAX_CORRUPT_IN_A_ROW:
            self._corrupt_in_a_row = 0
            self._handle_loss(role)

    def _wait_until_taken(self) -> None:
        """Wait, for a recording, until its last pair was taken: none is dropped, and none grows old."""
        if not self._cameras.live:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is None or self._stop.is_set())

    def _publish(self, frame: StereoFrame) -> None:
        on_frame = self.on_frame
        if on_frame is not None:
            on_frame(frame)
        with self._changed:
            self._newest = frame
            self._changed.notify_all()
        self._last_pair_at_s = time.monotonic()

    def _handle_loss(self, role: str, note: str | None = None) -> None:
        """Reopen a lost camera until it works; end a recording, or rewind it."""
        if not self._cameras.live:
            self._end_or_rewind(role, note)
            return
        self.losses += self.waiting_for is None  # one that comes back without a frame is still the same loss
        self.waiting_for = role
        lost = [camera for camera in self._cameras.cameras if camera.role == role]
        while not self._stop.wait(_REOPEN_EVERY_S):
            if all(camera.reopen() for camera in lost):
                break
        for camera in self._cameras.cameras:
            for _ in range(_BUFFERED_FRAMES):
                camera.grab()

    def _end_or_rewind(self, role: str, note: str | None) -> None:
        if self._shape is None:
            raise CameraError(f"{role}: holds no frame that can be decoded")
        if not self.source.loop:
            if note is not None:
                logger.warning(note)
            self._stop.set()
            return
        if self._pairs_since_rewind == 0:
            raise CameraError(f"{role}: gives no frame when it is played again")
        self._pairs_since_rewind = 0
        self._cameras.rewind()

    def _check_size(self, left: Frame, right: Frame) -> None:
        if left.shape != right.shape:
            raise CameraError(
                f"the left camera gives {left.shape[1]}x{left.shape[0]}, the right one {right.shape[1]}x"
                f"{right.shape[0]}; both need one size"
                + (": request one that both support by --width and --height" if self._cameras.live else "")
            )
        if self._cameras.live and self._shape not in (None, left.shape):
            assert self._shape is not None
            raise CameraError(
                f"the frame size changed from {self._shape[1]}x{self._shape[0]} to {left.shape[1]}x{left.shape[0]}; "
                "start again, and request one size by --width and --height"
            )
        self._shape = left.shape


def open_rig(
    source: SourceOptions, camera: CameraOptions, *, realtime: bool = True, calibrated: RigSettings | None = None
) -> Rig:
    """Open the cameras or files that the options name, apply the settings and lock focus, exposure and white balance.

    Args:
        source: which cameras.
        camera: settings that are requested of them.
        realtime: play recordings at their own rate; otherwise only where a rate is given.
        calibrated: settings of the left and the right camera while they were calibrated; None where they are unknown.

    Raises:
        UserError: they cannot be opened, or do not belong together.
    """
    source.check_given()
    cameras = _open_source(source, camera)
    settings = None
    if cameras.cameras and all(each.is_device for each in cameras.cameras):
        settings = _lock_settings(cameras.cameras, source, camera, calibrated)
    return Rig(
        cameras,
        source,
        settings=settings,
        fps=camera.fps or ((cameras.fps or 1.0) if realtime else None),
        nominal_fps=None if cameras.live else camera.fps,
    )


def find_images(source: SourceOptions) -> Pairs | None:
    """Return the pairs of image files that a source names; None for cameras, streams and videos.

    Raises:
        DataError: they are missing, or have no partners.
    """
    named = [address for address in (source.left, source.right, source.side_by_side) if address is not None]
    if any(map(_is_capture, named)):
        return None
    return find_pairs(named[0], source.right, side_by_side=source.side_by_side is not None)


def _open_source(source: SourceOptions, options: CameraOptions) -> StereoSource:
    images = find_images(source)
    if images is not None:
        return ImagePairs(images)
    if source.side_by_side is not None:
        both = options
        if options.camera_width is not None:
            both = dataclasses.replace(options, camera_width=2 * options.camera_width)
        return SideBySideCamera(Camera(source.side_by_side, f"--side-by-side {source.side_by_side}", both))
    assert source.left is not None
    assert source.right is not None
    kinds = _describe_kind(source.left), _describe_kind(source.right)
    if kinds[0] != kinds[1]:
        raise UserError(
            f"--left {source.left} is {kinds[0]}, --right {source.right} is {kinds[1]}; both have to be of one kind"
        )
    if source.left == source.right and not is_video(source.left):
        raise UserError(
            f"--left and --right are both {source.left}; one device with both views side by side is --side-by-side"
        )
    left = Camera(source.left, f"--left {source.left}", options)
    try:
        return TwoCameras(left, Camera(source.right, f"--right {source.right}", options))
    except BaseException:
        left.release()
        raise


def _lock_settings(
    cameras: list[Camera], source: SourceOptions, camera: CameraOptions, calibrated: RigSettings | None
) -> RigSettings:
    """Lock the cameras' settings; return those of the left and of the right view."""
    known: tuple[CameraSettings | None, ...] = calibrated or (None, None)
    # One device gives both views; swapped views are those of the other camera.
    known = known[: len(cameras)] if not source.swap else known[::-1][: len(cameras)]
    found = lock_settings(cameras, camera, known)
    views = (found[0], found[-1])
    return (views[1], views[0]) if source.swap else views


def _is_capture(address: str) -> bool:
    return is_device(address) or is_stream(address) or is_video(address)


def _describe_kind(address: str) -> str:
    if is_device(address) or is_stream(address):
        return "a live camera"
    return "a video" if is_video(address) else "image files"
