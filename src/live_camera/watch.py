"""What is wrong with the pictures themselves: black, frozen, upside down, or left and right exchanged."""

import cv2
import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.block_matching import match_blocks
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


def arrangement_complaint(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> str | None:
    """One line where the pair fits much better with its eyes exchanged, or with one of them upside down; else None.

    Each way round is matched at a small size; the share of pixels that the matcher answers tells. A rig that is
    upside down as a whole looks like one with its eyes exchanged, and `--swap` with `--upside-down both` mends it.

    Args:
        left: rectified, RGB.
        right: rectified, RGB.
    """
    size = (_CHECK_WIDTH_PX, _CHECK_HEIGHT_PX)
    left, right = (np.asarray(cv2.resize(eye, size, interpolation=cv2.INTER_AREA), np.uint8) for eye in (left, right))
    given = matched_share(left, right)
    if given >= _LEAST_MATCHED:
        return None
    left_turned, right_turned = left[::-1, ::-1].copy(), right[::-1, ::-1].copy()
    others = {
        "left and right seem to be exchanged; --swap exchanges them": matched_share(right, left),
        "the right eye seems to be upside down; --upside-down right turns it": matched_share(left, right_turned),
        "the left eye seems to be upside down; --upside-down left turns it": matched_share(left_turned, right),
    }
    complaint, share = max(others.items(), key=lambda item: item[1])
    return complaint if share >= _LEAST_MATCHED and share > _CLEARLY_BETTER * given else None


def matched_share(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> float:
    """The share of pixels that a semi-global matcher answers, 0 to 1."""
    return float(match_blocks(left, right).matched.mean())
