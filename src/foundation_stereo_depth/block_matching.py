"""OpenCV's semi-global block matching: what one would run instead of a network, and what one network starts from.

NumPy and OpenCV only.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

PRIOR_PLANES = 5
"""Planes of `prior_planes`: disparity in px, 1 where the matcher itself answered, the warped right view's RGB."""

_BLOCK_PX = 3
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


def match_blocks(
    left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"], *, grey: bool = False
) -> BlockMatch:
    """Disparity in px by semi-global matching (Hirschmüller, "Stereo processing by semiglobal matching", PAMI 2008).

    The matcher never answers within the first `disparities` columns, whose partners may lie outside the right
    picture. So both pictures are continued to the left, which costs a fifth more time and answers those columns too.

    Args:
        left: RGB, rectified.
        right: the same.
        grey: compare luminance alone, in little more than half the time.
    """
    disparities = disparities_for(left.shape[1])
    if grey:
        left, right = (np.asarray(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), np.uint8) for view in (left, right))
    # The smoothness penalties that OpenCV's documentation advises, 8 and 32 per channel and pixel of the block.
    penalty = (1 if grey else 3) * _BLOCK_PX**2
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


def prior_planes(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "5 H W"]:
    """What a network that corrects this matcher wants to know: see `PRIOR_PLANES`.

    The right view is warped by the disparity: its pixel (x - d, y) stands at (x, y), RGB 0..1, where a right answer
    shows what the left view shows.
    """
    height, width = left.shape[:2]
    found = match_blocks(left, right, grey=True)
    planes = np.empty((PRIOR_PLANES, height, width), np.float32)
    # Where nothing in the whole picture could be matched, the network begins at "far away".
    np.nan_to_num(found.disparity_px, copy=False, nan=0.0)
    planes[0], planes[1] = found.disparity_px, found.matched
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    rows = np.broadcast_to(y[:, None], (height, width))
    warped = cv2.remap(
        right, x - planes[0], np.ascontiguousarray(rows), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    planes[2:] = np.asarray(warped).transpose(2, 0, 1)
    planes[2:] /= 255
    return planes


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
    # From each pixel the position of the nearest known one on its left, and on its right; a position outside the map
    # stands for "none", and infinity is found there.
    height, width = disparity_px.shape
    columns = np.arange(1, width + 1, dtype=np.int32)
    none = width + 1
    left = np.maximum.accumulate(np.where(known, columns, 0), axis=1)
    right = np.minimum.accumulate(np.where(known, columns, none)[:, ::-1], axis=1)[:, ::-1]
    framed = np.full((height, width + 2), np.inf, np.float32)
    framed[:, 1:-1] = disparity_px
    first = np.arange(height, dtype=np.int32)[:, None] * framed.shape[1]
    filled = np.minimum(framed.take(left + first), framed.take(right + first))
    if len(rows) < height:
        filled = filled[rows[np.abs(np.arange(height)[:, None] - rows).argmin(axis=1)]]
    return filled.astype(disparity_px.dtype, copy=False)
