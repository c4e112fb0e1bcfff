"""What is wrong with a running view: frames that are black, frozen, upside down or swapped; the rig; the network."""

import logging

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.calibration.rig import RigCalibration
from foundation_stereo_depth.data.rectify import Rectifier, Resizer
from foundation_stereo_depth.data.row_check import Rectify, check_first_pair
from foundation_stereo_depth.stereo import sgbm
from live_camera.matcher import Matcher, WatchedMatcher
from live_camera.options import SourceOptions
from live_camera.rig import Rig, StereoFrame

logger = logging.getLogger(__name__)

Rgb = UInt8[np.ndarray, "_ _ 3"]

_BLACK_BELOW = 6.0
"""Mean brightness, of 255, of a covered lens; a dim room is brighter, since exposure adapts."""
_FROZEN_AFTER_S = 1.0
"""The noise of a sensor never repeats for so long."""
_STEP_PX = 8
_CHECK_WIDTH_PX, _CHECK_HEIGHT_PX = 160, 120
_MIN_MATCHED = 0.7
"""A correct arrangement matches on more than this fraction of the pixels. Measured on twelve real pairs: correct 0.86
to 0.97, swapped 0.15 to 0.53, one view upside down 0.18 to 0.41."""
_MIN_GAIN = 1.4
"""Another arrangement has to match on so many times more pixels to be suggested."""
_ARRANGEMENT_EVERY = 300
"""Pairs between two checks of the arrangement, which cost four matches."""


class Diagnostics:
    """Checks a running view and logs each warning once while it lasts.

    Args:
        rig: gives the pairs; black and frozen frames are checked where it is live.
        rectify: makes a raw pair a rectified one.
        matcher: the network, which may be a watched one.
    """

    def __init__(self, rig: Rig, rectify: Rectifier | Resizer, matcher: Matcher | WatchedMatcher) -> None:
        self._rig = rig
        self._rectify = rectify
        self._matcher = matcher
        self._frames = FrameCheck()
        self._frame_warnings: list[str] = []
        self._arrangement: str | None = None
        self._rows: str | None = None
        self._size: str | None = None
        self._checked = 0
        self._last: set[str] = set()

    def update(self, frame: StereoFrame | None) -> list[str]:
        """Check a new pair, where there is one; log new warnings; return all that hold now, one line each."""
        if frame is not None:
            self._check_frame(frame)
        problem = self._matcher.problem if isinstance(self._matcher, WatchedMatcher) else None
        found = [*self._frame_warnings, self._rig.warning, self._rig.changed_setting, self._size]
        found += [self._arrangement, self._rows, problem]
        warnings = [line for line in found if line is not None]
        for line in warnings:
            if line not in self._last:
                logger.warning(line)
        self._last = set(warnings)
        return warnings

    def _check_frame(self, frame: StereoFrame) -> None:
        if self._checked % _ARRANGEMENT_EVERY == 0:
            self._arrangement = check_arrangement(frame, self._rectify, self._rig.source)
            if self._checked == 0 and self._arrangement is None:
                self._rows = check_first_pair(frame.left_rgb, frame.right_rgb, self._rectify)
        if self._checked == 0 and self._rig.live:
            self._size = check_frame_size(frame, self._rectify.calibration)
        self._checked += 1
        if self._rig.live:
            self._frame_warnings = self._frames.check(frame)


class FrameCheck:
    """Finds views that are black, or do not change any more."""

    def __init__(self) -> None:
        self._last: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
        self._changed_at_s: dict[str, float] = {}

    def check(self, frame: StereoFrame) -> list[str]:
        """Return one line for each view that is black or frozen."""
        found: list[str] = []
        for side, image in (("left", frame.left_rgb), ("right", frame.right_rgb)):
            samples = image[::_STEP_PX, ::_STEP_PX].copy()
            now_s = frame.captured_at_s
            if side not in self._last or not np.array_equal(samples, self._last[side]):
                self._last[side], self._changed_at_s[side] = samples, now_s
            frozen_s = now_s - self._changed_at_s[side]
            if samples.mean() < _BLACK_BELOW:
                found.append(f"the {side} view is black: is the lens covered?")
            elif frozen_s > _FROZEN_AFTER_S:
                found.append(f"the {side} view is frozen: reconnect the camera")
        return found


def check_frame_size(frame: StereoFrame, calibration: RigCalibration | None) -> str | None:
    """Return one line where cameras give another frame size than they were calibrated at; else None."""
    height, width = frame.left_rgb.shape[:2]
    if calibration is None or (width, height) == (calibration.width, calibration.height):
        return None
    return (
        f"frames are {width}x{height}, the calibration was made at {calibration.width}x{calibration.height}: depth is "
        "right only where the cameras scale the whole image; many crop it"
    )


def check_arrangement(frame: StereoFrame, rectify: Rectify, source: SourceOptions) -> str | None:
    """Return one line where the pair matches much better with its views swapped, or one of them turned; else None.

    Each arrangement is rectified from the raw frames, since a view that is arranged wrongly was rectified by the other
    camera's maps, and matched at a small size; the fraction of matched pixels decides. A whole rig that is upside down
    looks like one with its views swapped; `--swap` with `--upside-down both` corrects it.

    Args:
        frame: as the cameras gave it, and as `source` arranges it.
        rectify: makes a raw pair a rectified one.
        source: how the views are arranged already, so that the advice names the flags to type.
    """
    left, right = frame.left_rgb, frame.right_rgb
    current = _matched_after(rectify, left, right)
    if current >= _MIN_MATCHED:
        return None
    left_camera, right_camera = ("right", "left") if source.swap else ("left", "right")
    swap_advice = "remove --swap" if source.swap else "use --swap"
    arrangements = {
        f"left and right views seem to be swapped; {swap_advice}": (right, left),
        _advise_turn(right_camera, source): (left, _turn(right)),
        _advise_turn(left_camera, source): (_turn(left), right),
    }
    matched = {advice: _matched_after(rectify, *views) for advice, views in arrangements.items()}
    advice, best = max(matched.items(), key=lambda item: item[1])
    return advice if best >= _MIN_MATCHED and best > _MIN_GAIN * current else None


def matched_fraction(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> float:
    """Return the fraction of pixels that semi-global matching matches, 0 to 1."""
    return float(sgbm.match(left, right).valid.mean())


def _matched_after(rectify: Rectify, left: Rgb, right: Rgb) -> float:
    size = (_CHECK_WIDTH_PX, _CHECK_HEIGHT_PX)
    small = [np.asarray(cv2.resize(v, size, interpolation=cv2.INTER_AREA), np.uint8) for v in rectify(left, right)]
    return matched_fraction(small[0], small[1])


def _advise_turn(camera: str, source: SourceOptions) -> str:
    """Return the advice to turn one camera's frames, or to stop turning them. The flag acts before `--swap` does."""
    turned = {"none": set[str](), "both": {"left", "right"}}.get(source.upside_down, {source.upside_down}) ^ {camera}
    if not turned:
        return f"the {camera} camera seems to be upside down; remove --upside-down"
    value = "both" if len(turned) == 2 else turned.pop()
    return f"the {camera} camera seems to be upside down; use --upside-down {value}"


def _turn(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    return image[::-1, ::-1].copy()
