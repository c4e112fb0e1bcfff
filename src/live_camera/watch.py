"""What is wrong with the pictures themselves: black, frozen, upside down, or left and right exchanged."""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.stereo import sgbm
from live_camera.options import SourceOptions
from live_camera.rig import StereoFrame

_BLACK_BELOW = 6.0
"""Mean brightness, of 255, of a covered lens; a dim room is brighter, since exposure follows."""
_FROZEN_AFTER_S = 1.0
"""The noise of a sensor never repeats for so long."""
_STEP_PX = 8
_CHECK_WIDTH_PX, _CHECK_HEIGHT_PX = 160, 120
_LEAST_MATCHED = 0.7
"""The right way round matches on more than this share. Measured on twelve real pairs: the right way 0.86 to 0.97,
exchanged 0.15 to 0.53, one eye upside down 0.18 to 0.41."""
_CLEARLY_BETTER = 1.4
"""Another way round has to match on so many times more pixels."""


class FrameWatch:
    """Looks at each pair of a live rig for black and frozen eyes."""

    def __init__(self) -> None:
        self._last: dict[str, UInt8[np.ndarray, "h w 3"]] = {}
        self._changed_at_s: dict[str, float] = {}

    def complaints(self, frame: StereoFrame) -> list[str]:
        """One line for each eye that shows nothing, or nothing new."""
        found: list[str] = []
        for eye, picture in (("left", frame.left_rgb), ("right", frame.right_rgb)):
            few = picture[::_STEP_PX, ::_STEP_PX].copy()
            now_s = frame.captured_at_s
            if eye not in self._last or not np.array_equal(few, self._last[eye]):
                self._last[eye], self._changed_at_s[eye] = few, now_s
            frozen_s = now_s - self._changed_at_s[eye]
            if few.mean() < _BLACK_BELOW:
                found.append(f"the {eye} eye is black: is its lens covered?")
            elif frozen_s > _FROZEN_AFTER_S:
                found.append(f"the {eye} eye has not changed any more: plug it in again?")
        return found


def arrangement_complaint(
    frame: StereoFrame,
    prepare: Callable[[StereoFrame], tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]],
    source: SourceOptions,
) -> str | None:
    """One line where the pair fits much better with its eyes exchanged, or with one of them upside down; else None.

    Each way round is rectified from the raw pictures, as an eye that stands wrong was rectified by the other's maps,
    and matched at a small size; the share of pixels that the matcher answers tells. A rig that is upside down as a
    whole looks like one with its eyes exchanged, and `--swap` with `--upside-down both` mends it.

    Args:
        frame: as the cameras gave it, and as `source` arranges it.
        prepare: makes it a rectified pair, RGB.
        source: how the eyes are arranged already, so that what is advised is what has to be typed.
    """
    given = _share_of(prepare(frame))
    if given >= _LEAST_MATCHED:
        return None
    left, right = frame.left_rgb, frame.right_rgb
    left_camera, right_camera = ("right", "left") if source.swap else ("left", "right")
    others = {
        f"left and right seem to be exchanged; {'leave --swap out' if source.swap else '--swap exchanges them'}": (
            right,
            left,
        ),
        _turning(right_camera, source): (left, _turned(right)),
        _turning(left_camera, source): (_turned(left), right),
    }
    shares = {
        advice: _share_of(prepare(dataclasses.replace(frame, left_rgb=views[0], right_rgb=views[1])))
        for advice, views in others.items()
    }
    advice, share = max(shares.items(), key=lambda item: item[1])
    return advice if share >= _LEAST_MATCHED and share > _CLEARLY_BETTER * given else None


def _turning(camera: str, source: SourceOptions) -> str:
    """What to type so that one camera's picture is turned, or no longer turned. The flag acts before `--swap` does."""
    turned = {"none": set[str](), "both": {"left", "right"}}.get(source.upside_down, {source.upside_down}) ^ {camera}
    if not turned:
        return f"the {camera} eye seems to be upside down; leave --upside-down out"
    which = "both" if len(turned) == 2 else turned.pop()
    mends = "turns it" if source.upside_down == "none" else "is right"
    return f"the {camera} eye seems to be upside down; --upside-down {which} {mends}"


def _turned(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    return picture[::-1, ::-1].copy()


def _share_of(pair: tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]]) -> float:
    size = (_CHECK_WIDTH_PX, _CHECK_HEIGHT_PX)
    left, right = (np.asarray(cv2.resize(eye, size, interpolation=cv2.INTER_AREA), np.uint8) for eye in pair)
    return matched_share(left, right)


def matched_share(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> float:
    """The share of pixels that a semi-global matcher answers, 0 to 1."""
    return float(sgbm.match(left, right).valid.mean())
