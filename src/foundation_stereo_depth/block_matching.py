"""OpenCV's semi-global block matching: what one would run instead of a network. NumPy and OpenCV only."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

_BLOCK_PX = 3
_CHANNELS = 3
_SHARE_OF_WIDTH = 0.2
"""The largest disparity looked for, of the width: it holds every disparity of the benchmarks and of most rigs."""
_STEPS_PER_PX = 16
"""OpenCV counts disparity in sixteenths of a pixel, and wants the number of disparities in multiples of this too."""


class BlockMatch(NamedTuple):
    """The disparity of the left view, at the size of the pictures.

    Attributes:
        disparity_px: holes filled; NaN only where nothing at all could be matched.
        matched: where the matcher itself gave the answer.
    """

    disparity_px: Float[np.ndarray, "H W"]
    matched: Bool[np.ndarray, "H W"]


def disparities_for(width: int) -> int:
    """How many disparities are looked for in pictures of this width, px: a fifth of it, in steps of 16.

    >>> disparities_for(320), disparities_for(1280)
    (64, 256)
    """
    return int(np.ceil(width * _SHARE_OF_WIDTH / _STEPS_PER_PX)) * _STEPS_PER_PX


def match_blocks(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> BlockMatch:
    """Disparity in px by semi-global matching (Hirschmüller, "Stereo processing by semiglobal matching", PAMI 2008).

    The matcher never answers within the first `disparities` columns, whose partners may lie outside the right
    picture. So both pictures are continued to the left, which costs a fifth more time and answers those columns too.
    """
    disparities = disparities_for(left.shape[1])
    # The smoothness penalties that OpenCV's documentation advises, 8 and 32 per channel and pixel of the block.
    penalty = _CHANNELS * _BLOCK_PX**2
    matcher = cv2.StereoSGBM.create(
        minDisparity=0,
        numDisparities=disparities,
        blockSize=_BLOCK_PX,
        P1=8 * penalty,
        P2=32 * penalty,
        disp12MaxDiff=1,
        preFilterCap=15,
        uniquenessRatio=10,
        speckleWindowSize=100,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    wider = [cv2.copyMakeBorder(view, 0, 0, disparities, 0, cv2.BORDER_REPLICATE) for view in (left, right)]
    steps = np.asarray(matcher.compute(*wider))[:, disparities:]
    matched = steps > 0
    return BlockMatch(filled_from_background(steps.astype(np.float32) / _STEPS_PER_PX, matched), matched)


def filled_from_background(
    disparity_px: Float[np.ndarray, "H W"], known: Bool[np.ndarray, "H W"]
) -> Float[np.ndarray, "H W"]:
    """The map with each hole filled, px: by the smaller of the nearest known values to its left and right in the row.

    What one eye alone sees is background, so the farther neighbour is the better guess. A row without any known value
    takes the nearest row that has one; a map without any is NaN throughout.
    """
    rows = np.flatnonzero(known.any(axis=1))
    if not len(rows):
        return np.full_like(disparity_px, np.nan)
    columns = np.arange(disparity_px.shape[1])
    none_left, none_right = -1, len(columns)
    left = np.maximum.accumulate(np.where(known, columns, none_left), axis=1)
    right = np.minimum.accumulate(np.where(known, columns, none_right)[:, ::-1], axis=1)[:, ::-1]
    from_left = np.take_along_axis(disparity_px, left.clip(min=0), axis=1)
    from_right = np.take_along_axis(disparity_px, right.clip(max=len(columns) - 1), axis=1)
    filled = np.minimum(
        np.where(left == none_left, np.inf, from_left), np.where(right == none_right, np.inf, from_right)
    )
    nearest = rows[np.abs(np.arange(len(known))[:, None] - rows).argmin(axis=1)]
    return filled[nearest].astype(disparity_px.dtype)
