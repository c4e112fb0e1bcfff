"""Two eyes -> pairs: grab both, then decode both, in a thread of its own, so that the newest pair is at hand.

    with open_rig(source, camera) as rig:
        for frame in rig:
            ...

A live rig overwrites what nobody took; videos and pictures wait, so that none of theirs is left out.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.data.pairs import find_pairs
from foundation_stereo_depth.errors import CameraError, UserError
from live_camera.camera import Camera, Picture, is_device, is_stream, is_video
from live_camera.options import CameraOptions, SourceOptions
from live_camera.sources import DamagedError, Eyes, LostError, PicturePairs, SideBySide, TwoCameras

_REOPEN_EVERY_S = 1.0
_DRAINED_PICTURES = 5
"""The eye that was not lost has this many old pictures waiting when the other one comes back."""
_MOST_DAMAGED_IN_A_ROW = 10
"""Cheap cameras send a torn picture now and then; so many on end count as a camera lost."""
_APART_FOR_S = 2.0
_STALLED_S, _STALLED_PAIRS = 2.0, 3
"""Without a pair for so long, and for so many pairs' time, something is wrong; drivers give up after ten seconds."""
_SETTLING_S = 1.5
"""Exposure and white balance find their values in about this time before they are locked."""


@dataclass(frozen=True, kw_only=True)
class StereoFrame:
    """A pair as the cameras gave it.

    Attributes:
        left_rgb, right_rgb: raw, RGB, of one size.
        captured_at_s: when the later eye was taken, `time.monotonic`.
        skew_ms: how much later the right eye was taken than the left one; below 0 where it was earlier.
    """

    left_rgb: UInt8[np.ndarray, "H W 3"]
    right_rgb: UInt8[np.ndarray, "H W 3"]
    captured_at_s: float
    skew_ms: float


class Rig:
    """Pairs from a thread that does nothing else; to be used in a `with`.

    Args:
        eyes: where they come from.
        source: which eye is which, and how much skew is allowed.
        fps: recordings are played at this rate, pairs a second; None as fast as they are taken.
        tell: says a line to whoever loops over the pairs while none comes.

    Attributes:
        source: as it was given.
        ended: a recording is at its end, and its last pair has been taken.
        waiting_for: what was lost and is being opened again; None where all is well.
        complaint: one line about that; None where all is well.
        skew_dropped: pairs that were dropped because their eyes were too far apart in time.
        skew_ms: of the newest pair, dropped or not.
        losses: how often an eye was lost.
        damaged: pictures that could not be decoded, and were left out.
        tap: gets every pair, in the rig's own thread, whether anyone takes it or not; None for nobody.
    """

    def __init__(
        self, eyes: Eyes, source: SourceOptions, *, fps: float | None = None, tell: Callable[[str], None] = print
    ) -> None:
        self._eyes = eyes
        self.source = source
        self._tell = tell
        self._interval_s = 1 / fps if fps and not eyes.live else 0.0
        self._changed = threading.Condition()
        self._newest: StereoFrame | None = None
        self._failure: BaseException | None = None
        self._over = False
        self._stop = threading.Event()
        self._shape: tuple[int, ...] | None = None
        self.waiting_for: str | None = None
        self.skew_dropped = 0
        self.skew_ms = 0.0
        self.losses = 0
        self.damaged = 0
        self.tap: Callable[[StereoFrame], None] | None = None
        self._damaged_in_a_row = 0
        self._apart_since_s: float | None = None
        self._apart_said = ""
        self._handed_over_at_s: float | None = None
        self._since_rewind = 0
        self._thread = threading.Thread(target=self._run, name="cameras", daemon=True)

    @property
    def live(self) -> bool:
        """True for cameras and streams, false for what lies in files."""
        return self._eyes.live

    @property
    def fps(self) -> float | None:
        """Pairs a second that the cameras or the recording give; None where that is unknown."""
        return self._eyes.fps

    @property
    def settings_missed(self) -> list[str]:
        """One line for each setting of a camera that is not as asked."""
        return [line for camera in self._eyes.cameras for line in camera.settings_missed]

    @property
    def complaint(self) -> str | None:
        """What is being waited for, or why no pair comes, in one line; None where all is well."""
        role = self.waiting_for
        apart_since_s = self._apart_since_s
        if role is None and apart_since_s is not None and time.monotonic() - apart_since_s > _APART_FOR_S:
            return self._apart_said
        if role is None:
            handed_over_at_s = self._handed_over_at_s
            patience_s = max(_STALLED_S, _STALLED_PAIRS / self.fps if self.fps else 0)
            stalled = handed_over_at_s is not None and time.monotonic() - handed_over_at_s > patience_s
            return "no pair comes any more; waiting" if stalled and self.live else None
        if self._shape is not None:
            return f"{role} is gone; waiting until it is back"
        return (
            f"{role} gives no picture; waiting. Two cameras may be too much for one USB port: give each its own, or a "
            "smaller --width and --height, or --fourcc MJPG"
        )

    @property
    def ended(self) -> bool:
        """True once a recording is at its end and its last pair has been taken."""
        with self._changed:
            return self._over and self._newest is None and self._failure is None

    def __enter__(self) -> "Rig":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        # A driver may hold the thread for seconds after its camera has gone; the thread is a daemon and may be left.
        self._thread.join(timeout=3)
        if not self._thread.is_alive():
            for camera in self._eyes.cameras:
                camera.release()

    def next(self, timeout_s: float) -> StereoFrame | None:
        """The newest pair that was not taken yet; None where none came in that time, or none will come.

        Raises:
            UserError: the pair is not one: its eyes differ in size, or a file cannot be read.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._newest is not None or self._over or self._failure is not None, timeout_s
            )
            frame, self._newest = self._newest, None
            self._changed.notify_all()
            if frame is None and self._failure is not None:
                raise self._failure
            return frame

    def __iter__(self) -> Iterator[StereoFrame]:
        """All pairs, each the newest; waits for lost cameras and says so, ends with a recording."""
        said: str | None = None
        while not self.ended:
            frame = self.next(timeout_s=0.5)
            if frame is not None:
                yield frame
            elif self.complaint != said:
                said = self.complaint
                if said is not None:
                    self._tell(said)

    def _run(self) -> None:
        try:
            due_s = time.monotonic()
            while not self._stop.wait(max(0.0, due_s - time.monotonic()) if self._interval_s else 0):
                self._wait_for_room()
                frame = self._pair()
                if frame is not None:
                    self._hand_over(frame)
                    due_s = max(due_s, time.monotonic() - self._interval_s) + self._interval_s
        except BaseException as error:  # raised again where pairs are taken
            self._failure = error
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _pair(self) -> StereoFrame | None:
        """The next pair that may be shown; None where it is dropped, or an eye is lost."""
        try:
            times = self._eyes.grab()
            self.waiting_for = None
            self.skew_ms = 1000 * (times.right_s - times.left_s)
            if abs(self.skew_ms) > self.source.max_skew_ms:
                self.skew_dropped += 1
                if self._apart_since_s is None:
                    self._apart_since_s = time.monotonic()
                    # Said as it is at first: figures that change would be said again and again.
                    self._apart_said = (
                        f"every pair is dropped: the eyes are {abs(self.skew_ms):.0f} ms apart, and --max-skew-ms "
                        f"allows {self.source.max_skew_ms:g}"
                    )
                return None
            self._apart_since_s = None
            left, right = self._eyes.retrieve()
            self._damaged_in_a_row = 0
        except DamagedError as damaged:
            self.damaged += 1
            self._damaged_in_a_row += 1
            if self._damaged_in_a_row == _MOST_DAMAGED_IN_A_ROW:
                self._damaged_in_a_row = 0
                self._lose(damaged.role)
            return None
        except LostError as lost:
            self._lose(lost.role, lost.note)
            return None
        self._check_size(left, right)
        self._since_rewind += 1
        swapped = self.source.swap
        if self.source.upside_down in ("left", "both"):
            left = np.asarray(cv2.rotate(left, cv2.ROTATE_180), np.uint8)
        if self.source.upside_down in ("right", "both"):
            right = np.asarray(cv2.rotate(right, cv2.ROTATE_180), np.uint8)
        return StereoFrame(
            left_rgb=right if swapped else left,
            right_rgb=left if swapped else right,
            captured_at_s=max(times),
            skew_ms=-self.skew_ms if swapped else self.skew_ms,
        )

    def _wait_for_room(self) -> None:
        """A recording is read on when its last pair was taken, so that none is left out, and none grows old."""
        if not self._eyes.live:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is None or self._stop.is_set())

    def _hand_over(self, frame: StereoFrame) -> None:
        tap = self.tap
        if tap is not None:
            tap(frame)
        with self._changed:
            self._newest = frame
            self._changed.notify_all()
        self._handed_over_at_s = time.monotonic()

    def _lose(self, role: str, note: str | None = None) -> None:
        """A camera is waited for; a recording ends, or begins again."""
        if not self._eyes.live:
            if self.source.loop and self._since_rewind > 0:
                self._since_rewind = 0
                self._eyes.rewind()
            elif self.source.loop and self._shape is not None:
                raise CameraError(f"{role}: gives no picture any more when it is played again")
            elif self._shape is None:
                raise CameraError(f"{role}: holds no picture that can be decoded")
            else:
                if note is not None:
                    self._tell(note)
                self._stop.set()
            return
        self.losses += self.waiting_for is None  # one that comes back without a picture is still the same loss
        self.waiting_for = role
        lost = [camera for camera in self._eyes.cameras if camera.role == role]
        while not self._stop.wait(_REOPEN_EVERY_S):
            if all(camera.reopen() for camera in lost):
                break
        for camera in self._eyes.cameras:
            for _ in range(_DRAINED_PICTURES):
                camera.grab()

    def _check_size(self, left: Picture, right: Picture) -> None:
        if left.shape != right.shape:
            raise CameraError(
                f"the left eye gives {left.shape[1]}x{left.shape[0]}, the right one {right.shape[1]}x{right.shape[0]}; "
                "both need one size" + (": --width and --height ask for one that both have" if self._eyes.live else "")
            )
        if self._eyes.live and self._shape not in (None, left.shape):
            assert self._shape is not None
            raise CameraError(
                f"the eyes gave {self._shape[1]}x{self._shape[0]} and now give {left.shape[1]}x{left.shape[0]}; start "
                "again, and name the size by --width and --height"
            )
        self._shape = left.shape


def open_rig(
    source: SourceOptions, camera: CameraOptions, *, realtime: bool = True, tell: Callable[[str], None] = print
) -> Rig:
    """The rig that the options name, its cameras set and their colours locked.

    Args:
        source: which eyes.
        camera: what is asked of cameras.
        realtime: play recordings at their own rate; else only where a rate is asked for.
        tell: says a line to the user, of settings that were missed.

    Raises:
        UserError: the eyes cannot be opened, or do not belong together.
    """
    source.needs_eyes()
    eyes = _open_eyes(source, camera)
    if all(camera.is_device for camera in eyes.cameras) and eyes.cameras:
        for line in _lock_colours(eyes):
            tell(line)
    rig = Rig(eyes, source, fps=camera.fps or ((eyes.fps or 1.0) if realtime else None), tell=tell)
    for line in rig.settings_missed:
        tell(line)
    return rig


def _open_eyes(source: SourceOptions, options: CameraOptions) -> Eyes:
    if source.side_by_side is not None:
        role = f"--side-by-side {source.side_by_side}"
        if _is_capture(source.side_by_side):
            both = options if options.width is None else dataclasses.replace(options, width=2 * options.width)
            return SideBySide(Camera(source.side_by_side, role, both))
        return PicturePairs(find_pairs(source.side_by_side, None), role)
    assert source.left is not None
    assert source.right is not None
    captures = [_is_capture(source.left), _is_capture(source.right)]
    if not any(captures):
        return PicturePairs(find_pairs(source.left, source.right), f"--left {source.left}")
    kinds = _kind(source.left), _kind(source.right)
    if kinds[0] != kinds[1]:
        raise UserError(
            f"--left {source.left} is {kinds[0]}, --right {source.right} is {kinds[1]}; both eyes have to be of one "
            "kind"
        )
    if source.left == source.right and not is_video(source.left):
        raise UserError(f"--left and --right are both {source.left}; one device with both eyes goes by --side-by-side")
    left = Camera(source.left, f"--left {source.left}", options)
    try:
        return TwoCameras(left, Camera(source.right, f"--right {source.right}", options))
    except BaseException:
        left.release()
        raise


def _lock_colours(eyes: Eyes) -> list[str]:
    """Both eyes keep what the left one chose, so that one colour looks the same to both; a line where they do not."""
    until_s = time.monotonic() + _SETTLING_S
    if not eyes.cameras[0].chosen_colours():
        return []
    while time.monotonic() < until_s:
        for camera in eyes.cameras:
            if camera.grab() is None:
                return [  # the rig's thread waits for it
                    f"{camera.role}: gave no picture at first, so exposure and white balance of both eyes stay "
                    "automatic; start again to have them locked"
                ]
    values = eyes.cameras[0].chosen_colours()
    for camera in eyes.cameras:
        camera.lock_colours(values)
    return []


def _is_capture(address: str) -> bool:
    return is_device(address) or is_stream(address) or is_video(address)


def _kind(address: str) -> str:
    """What an address is taken for, in words."""
    if is_device(address) or is_stream(address):
        return "live"
    return "a video" if is_video(address) else "pictures in files"
