"""OpenCV's semi-global block matching: the classical alternative to a network, and what the priors of networks use.

NumPy and OpenCV only.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Int16, Real, UInt8

from foundation_stereo_depth.stereo.match import StereoMatch

BLOCK_PX = 3
"""Side of the square over which matching costs are added up."""
_LARGEST_GRADIENT = 15
_SHARE_OF_WIDTH = 0.2
"""The largest disparity searched, as a fraction of the width: it covers the benchmarks and most rigs."""
STEPS_PER_PX = 16
"""OpenCV counts disparity in sixteenths of a pixel, and wants the number of disparities in multiples of this too."""
_PROBE_SHRINKS = 4
_PROBE_SHARE_OF_WIDTH = 0.4
_PROBE_SPECKLE = 1 / 240
"""Of the small image: a smaller region that differs from what is around it is a wrong match, not a near object."""
_RARELY_NEARER, _RARELY_FARTHER = 0.002, 0.01  # fractions of the image whose disparities may lie outside
_LEAST_MARGIN_PX, _MARGIN_SHARE_OF_WIDTH = 5, 1 / 64
_FARTHEST_PX = -2
"""OpenCV knows no fractions of the first disparity that it looks for, so what is far wants some before 0."""
_LEAST_PX = -0.5
"""Of answers below 0: what is infinitely far has 0, and less by no more than a rig's errors."""
_ALIKE = 4.0  # levels of 256
_EVENED_BY = 2  # one in so many pixels of the small images
_MOST_GAIN = 4.0


def disparities_for(width: int, share: float = _SHARE_OF_WIDTH) -> int:
    """Return how many disparities to search in images of this width, px: a fraction of it, in steps of 16.

    >>> disparities_for(320), disparities_for(1280)
    (64, 256)
    """
    return int(np.ceil(width * share / STEPS_PER_PX)) * STEPS_PER_PX


def match(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> StereoMatch:
    """Match by OpenCV's semi-global matching; return the disparity at the size of the views.

    Hirschmüller, "Stereo processing by semiglobal matching", PAMI 2008, with the settings that OpenCV's documentation
    recommends. Pixels that the matcher rejects are filled from the background and not `valid`; NaN only where no pixel
    of the whole image could be matched.

    Args:
        left: RGB, rectified.
        right: the same.
    """
    disparities = range(disparities_for(left.shape[1]))
    area = 3 * BLOCK_PX**2  # of the block, over its channels
    steps, matched = match_steps(
        left, right, disparities, step_penalty=8 * area, jump_penalty=32 * area, uniqueness_percent=10, speckle_px=100
    )
    disparity_px = filled_from_background(steps.astype(np.float32) / STEPS_PER_PX, matched)
    return StereoMatch(disparity_px=disparity_px, valid=matched)


class Search(NamedTuple):
    """Where to look for matches, found by a match of small images.

    Attributes:
        farthest_px, nearest_px: disparities that few pixels exceed; NaN where nothing was matched.
        width: of the images in whose px they are.
        levels: for each level of the right view, and colour, the one that the left view's exposure would give it; None
            where both are exposed alike.
    """

    farthest_px: float
    nearest_px: float
    width: int
    levels: UInt8[np.ndarray, "1 256 colours"] | None

    def disparities(self, width: int) -> range:
        """Return the disparities to search in images of that width: some more on either side, whole steps of 16."""
        if math.isnan(self.nearest_px):
            return range(disparities_for(width))
        scale = width / self.width
        margin_px = max(_LEAST_MARGIN_PX, _MARGIN_SHARE_OF_WIDTH * width)
        least = max(_FARTHEST_PX, math.floor(self.farthest_px * scale - margin_px))
        most_px = self.nearest_px * scale + margin_px
        return range(least, least + max(1, math.ceil((most_px - least) / STEPS_PER_PX)) * STEPS_PER_PX)

    def expose(self, right: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Return the right view exposed as the left one is."""
        return right if self.levels is None else np.asarray(cv2.LUT(right, self.levels), np.uint8)


def find_search(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Search:
    """Return where to look for matches, and how to expose the right view, by a match of images a quarter of the size.

    Args:
        left: RGB, rectified.
        right: the same.
    """
    width = left.shape[1]
    size = (width // _PROBE_SHRINKS, left.shape[0] // _PROBE_SHRINKS)
    small_left, small_right = (cv2.resize(to_grey(view), size, interpolation=cv2.INTER_AREA) for view in (left, right))
    # From another position an image keeps its mean and deviation roughly, which is enough for a coarse match.
    small_right = cv2.LUT(small_right, _levels(*cv2.meanStdDev(small_left), *cv2.meanStdDev(small_right)))
    area = BLOCK_PX**2
    steps, matched = match_steps(
        np.asarray(small_left, np.uint8),
        np.asarray(small_right, np.uint8),
        range(_FARTHEST_PX, _FARTHEST_PX + disparities_for(size[0], _PROBE_SHARE_OF_WIDTH)),
        step_penalty=4 * area,
        jump_penalty=8 * area,
        uniqueness_percent=10,
        speckle_px=max(20, round(_PROBE_SPECKLE * size[0] * size[1])),
    )
    rows, columns = np.nonzero(matched)
    if not len(rows):
        return Search(math.nan, math.nan, width, None)
    known = steps[rows, columns].astype(np.float32) / STEPS_PER_PX
    far, near = int(_RARELY_FARTHER * len(known)), -1 - int(_RARELY_NEARER * len(known))
    far_px, near_px = _PROBE_SHRINKS * np.partition(known, (far, near))[[far, near]]
    some = slice(None, None, _EVENED_BY)
    row, column = (_PROBE_SHRINKS * at[some] + _PROBE_SHRINKS // 2 for at in (rows, columns))
    there = np.maximum(column - np.rint(_PROBE_SHRINKS * known[some]).astype(np.intp), 0)
    return Search(float(far_px), float(near_px), width, _exposure(left[row, column], right[row, there]))


def _exposure(left: UInt8[np.ndarray, "n 3"], same: UInt8[np.ndarray, "n 3"]) -> UInt8[np.ndarray, "1 256 3"] | None:
    """Return the levels with which the right view has the mean and deviation of each colour of the left one.

    None where they differ by little, as they do between views exposed alike, or by what chance makes of places that are
    not quite the same.

    Args:
        left: colours of some places.
        same: of the same places in the right view.
    """
    (mean, deviation), (of_mean, of_deviation) = cv2.meanStdDev(left[:, None]), cv2.meanStdDev(same[:, None])
    _, unlike = cv2.meanStdDev(cv2.subtract(left[:, None], same[:, None], dtype=cv2.CV_32F))
    change = np.hypot(mean - of_mean, deviation - of_deviation)  # its root mean square, levels
    if (change < np.maximum(_ALIKE, 3 * unlike / np.sqrt(len(left)))).all():
        return None
    return _levels(mean, deviation, of_mean, of_deviation)


def _levels(
    mean: np.ndarray, deviation: np.ndarray, of_mean: np.ndarray, of_deviation: np.ndarray
) -> UInt8[np.ndarray, "1 256 colours"]:
    """For each level and colour the one that brings the second mean and deviation, [colours, 1], to the first."""
    gain = (deviation / np.maximum(of_deviation, 1)).clip(1 / _MOST_GAIN, _MOST_GAIN)
    return np.rint(mean + gain * (np.arange(256) - of_mean)).clip(0, 255).astype(np.uint8).T[None]


def match_steps(
    left: UInt8[np.ndarray, "H W *channels"],
    right: UInt8[np.ndarray, "H W *channels"],
    disparities: range,
    *,
    step_penalty: int,
    jump_penalty: int,
    uniqueness_percent: int,
    speckle_px: int,
    largest_gradient: int = _LARGEST_GRADIENT,
) -> tuple[Int16[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """Run OpenCV's matcher on every column of the left view: sixteenths of a pixel, and the mask of matched pixels.

    OpenCV leaves the first columns unmatched, as many as the largest disparity, because their partners may lie outside
    the right view. Both views are therefore extended to the left, which costs a fifth more time and matches those
    columns too. Disparities below 0, which only come from errors of a rig, are set to 0.

    Args:
        left: rectified.
        right: the same.
        disparities: the range to search, its length a multiple of 16.
        step_penalty: cost of a neighbour whose disparity differs by 1 px, P1.
        jump_penalty: cost of one that differs by more, P2.
        uniqueness_percent: margin by which the best match has to beat the second best.
        speckle_px: connected regions smaller than this are rejected.
        largest_gradient: horizontal gradients are compared up to this one, levels.
    """
    matcher = cv2.StereoSGBM.create(
        minDisparity=disparities.start,
        numDisparities=len(disparities),
        blockSize=BLOCK_PX,
        P1=step_penalty,
        P2=jump_penalty,
        disp12MaxDiff=1,
        preFilterCap=largest_gradient,
        uniquenessRatio=uniqueness_percent,
        speckleWindowSize=speckle_px,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )
    more, beyond = disparities.stop, max(0, -disparities.start)
    wider = [cv2.copyMakeBorder(view, 0, 0, more, beyond, cv2.BORDER_REPLICATE) for view in (left, right)]
    steps = np.asarray(matcher.compute(*wider))[:, more : more + left.shape[1]]
    if disparities.start < 0:
        return np.maximum(steps, 0), steps >= int(_LEAST_PX * STEPS_PER_PX)
    # The smallest disparity searched is not a match: points that are farther get it too, and so do wrong matches.
    return steps, steps > max(disparities.start * STEPS_PER_PX - 1, 0)


def to_grey(view: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """Return the luminance of an RGB view."""
    return np.asarray(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), np.uint8)


def filled_from_background(
    disparity: Real[np.ndarray, "H W"], known: Bool[np.ndarray, "H W"]
) -> Real[np.ndarray, "H W"]:
    """Return the map, in any unit, with each hole filled by the smaller of the known values left and right of it.

    What only one camera sees is background, so the farther neighbour is the better estimate. A row without any known
    value takes the nearest row that has one; a map of real numbers without any is NaN throughout.
    """
    rows = np.flatnonzero(known.any(axis=1))
    if not len(rows):
        return np.full_like(disparity, np.nan)
    height, width = disparity.shape
    # A known, infinitely near column after the last one keeps holes from continuing into the next row.
    nearest = np.inf if disparity.dtype.kind == "f" else np.iinfo(disparity.dtype).max
    edged, edged_known = np.empty((height, width + 1), disparity.dtype), np.empty((height, width + 1), bool)
    edged[:, :width], edged_known[:, :width] = disparity, known
    edged[:, width], edged_known[:, width] = nearest, True
    flat, flat_known = edged.ravel(), edged_known.ravel()
    changes = np.flatnonzero(flat_known[1:] != flat_known[:-1]) + 1
    begins, ends = (changes if flat_known[0] else np.append(0, changes)).reshape(-1, 2).T
    flat[~flat_known] = np.repeat(np.minimum(flat[begins - 1], flat[ends]), ends - begins)
    filled = edged[:, :width]
    if len(rows) < height:
        filled = filled[rows[np.abs(np.arange(height)[:, None] - rows).argmin(axis=1)]]
    return np.ascontiguousarray(filled)
