"""Whether a pair is rectified, judged by its images: the same point has to stand on the same row in both views."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.data.rectify import Rectifier, Resizer

Image = UInt8[np.ndarray, "_ _ 3"]
Rectify = Callable[[Image, Image], tuple[Image, Image]]
"""Raw left and right image, RGB -> the rectified pair."""

WIDTH_PX = 400
"""Larger images are shrunk to this width first; limits in px refer to it.

Measured at it, medians: rectified 0.06 to 0.33 px (24 pairs of two calibrated rigs, five Middlebury scenes), raw 0.55
to 7.9 px, rectified twice 0.46 to 13 px (docs/experiments/calibration.md).
"""
_WRONG_PX, _WRONG_RATIO = 0.4, 2.5
"""The other choice is suggested where rows differ by at least so much, and by so many times more than with it."""
_UNRECTIFIED_PX = 1.5
"""Rows that differ by so much are no rows of a rectified pair, whichever choice is better."""
_FEATURES, _MIN_MATCHES, _MATCH_RATIO = 600, 30, 0.8
_MAX_ROWS, _MAX_COLUMNS = 0.12, 0.35
"""Matches further apart, as a fraction of height and width, are mistakes."""


class RowDifference(NamedTuple):
    """How far apart rows are.

    Attributes:
        median_px: median absolute difference of the rows of matched points, px of the images.
        matches: number of points.
    """

    median_px: float
    matches: int


def measure_row_difference(left: Image, right: Image) -> RowDifference | None:
    """Return the difference of rows of a pair, RGB; None where too few points of it can be matched."""
    scale = min(1.0, WIDTH_PX / left.shape[1])
    points, descriptors = zip(*(_describe_points(view, scale) for view in (left, right)), strict=True)
    if min(len(each) for each in points) < _MIN_MATCHES:
        return None
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    back = {match.queryIdx: match.trainIdx for match in matcher.match(descriptors[1], descriptors[0])}
    matched = [
        (best.queryIdx, best.trainIdx)
        for best, second in matcher.knnMatch(descriptors[0], descriptors[1], k=2)
        if best.distance < _MATCH_RATIO * second.distance and back[best.trainIdx] == best.queryIdx
    ]
    in_left, in_right = np.array(matched, np.int64).reshape(-1, 2).T
    across_px, down_px = np.abs(points[0][in_left] - points[1][in_right]).T / scale
    height, width = left.shape[:2]
    near = (down_px < _MAX_ROWS * height) & (across_px < _MAX_COLUMNS * width)
    if near.sum() < _MIN_MATCHES:
        return None
    return RowDifference(float(np.median(down_px[near])), int(near.sum()))


def check_first_pair(left: Image, right: Image, rectifier: Rectifier | Resizer) -> str | None:
    """Return one line where a pair should be rectified though it is not, or the other way round; else None.

    Args:
        left: as the user gave it, RGB.
        right: the same of the right view.
        rectifier: what is applied to it.

    Raises:
        CalibrationError: the images do not have the calibration's aspect.
    """
    height, width = left.shape[:2]
    rectify = None
    if rectifier.given is not None:
        rectifier.given.check_size(height, width)
        rectify = Rectifier(rectifier.given, height=height, width=width)
    return check_rows(left, right, rectify, rectified=isinstance(rectifier, Rectifier))


def check_rows(left: Image, right: Image, rectify: Rectify | None, *, rectified: bool) -> str | None:
    """Return one line where a pair should be treated otherwise than it is; None where nothing speaks against it.

    Args:
        left: as the user gave it, RGB.
        right: the same of the right view.
        rectify: by the calibration, at the images' own size; None without one.
        rectified: the pair is rectified by it; else it is used as it is.
    """
    as_given = measure_row_difference(left, right)
    after = None if rectify is None else measure_row_difference(*rectify(left, right))
    chosen, other = (after, as_given) if rectified else (as_given, after)
    if chosen is None:
        return None
    limit = left.shape[1] / min(WIDTH_PX, left.shape[1])
    rows = f"the rows of both views differ by {chosen.median_px:.2g} px (median of {chosen.matches} points)"
    if other is not None and chosen.median_px > _WRONG_PX * limit and chosen.median_px > _WRONG_RATIO * other.median_px:
        if rectified:
            return (
                f"{rows} after rectification, but by {other.median_px:.2g} px before; the images seem to be rectified "
                "already: use --no-rectify"
            )
        return (
            f"{rows}, but by {other.median_px:.2g} px after rectification; the images seem to be raw: leave "
            "--no-rectify out"
        )
    if chosen.median_px <= _UNRECTIFIED_PX * limit:
        return None
    if rectify is None:
        return f"{rows}, so they are not rectified and their disparity is not reliable; give the rig's --calibration"
    return (
        f"{rows}{' after rectification' if rectified else ''}; is this the calibration of these images, and has no "
        "camera moved since it was made?"
    )


def _describe_points(image: Image, scale: float) -> tuple[Float[np.ndarray, "N 2"], Float[np.ndarray, "N 128"]]:
    """Return the positions of distinctive points, px of the shrunk image, and their descriptors."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    points, descriptors = cv2.SIFT.create(_FEATURES).detectAndCompute(grey, None)
    if not points:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    return np.array([point.pt for point in points], np.float32), np.asarray(descriptors, np.float32)
