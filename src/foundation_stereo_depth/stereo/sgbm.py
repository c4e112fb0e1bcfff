"""OpenCV's semi-global block matching: the classical alternative to a network, and the priors of networks.

NumPy, OpenCV and LAPACK only.
"""

import functools
import importlib
import importlib.util
import math
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int16, Real, UInt8

from foundation_stereo_depth.stereo.match import StereoMatch
from foundation_stereo_depth.stereo.subpixel import warp

PRIOR_PLANES = 10
"""Planes of `prior_planes`, disparities in px: the disparity; by how much the least and the most around each pixel
differ from it; 1 where the matcher itself answered; the left view less the right one warped by the disparity, RGB, and
by the least and the most, grey; by how much the disparity differs from the mean of its square."""

_BLOCK_PX = 3
_LARGEST_GRADIENT = 15
_SHARE_OF_WIDTH = 0.2
"""The largest disparity searched, as a fraction of the width: it covers the benchmarks and most rigs."""
_STEPS_PER_PX = 16
"""OpenCV counts disparity in sixteenths of a pixel, and wants the number of disparities in multiples of this too."""
_PROBE_SHRINKS = 4
_PROBE_SHARE_OF_WIDTH = 0.4
_RARELY_NEARER, _RARELY_FARTHER = 0.002, 0.01  # fractions of the image whose disparities may lie outside
_LEAST_MARGIN_PX, _MARGIN_SHARE_OF_WIDTH = 5, 1 / 64
_FARTHEST_PX = -2
"""OpenCV knows no fractions of the first disparity that it looks for, so what is far wants some before 0."""
_LEAST_PX = -0.5
"""Of answers below 0: what is infinitely far has 0, and less by no more than a rig's errors."""
_ALIKE = 4.0  # levels of 256
_EVENED_BY = 2  # one in so many pixels of the small images
_MOST_GAIN = 4.0
_MEDIAN_PX = 5
_SQUARE_PX = 16
_AROUND = np.ones((9, 9), np.uint8)

TWO_PRIOR_PLANES = PRIOR_PLANES + 6
"""Planes of `two_prior_planes`: those of `prior_planes`; the disparity of the smooth match minus that of the first, px;
1 where the smooth match is valid, else 0; its photometric residual (left view minus right view warped by it, luminance,
-1 to 1); the interpolated disparity minus that of the first, px; the support of the interpolated one, 0 to 1; its
photometric residual. With a coarse prediction that stands in place of the smooth match, and in place of its mask
exp(-deviation), of the deviation in px at a width of 320 px."""
_SMOOTH_WIDTH_PX, _SMOOTH_HEIGHT_PX = 320, 240  # the smooth match runs at about this width and half this height
_SMOOTH_STEP_PENALTY, _SMOOTH_JUMP_PENALTY = 16, 64  # per pixel of the block: 4 and 8 times those of the first match
_AGREE_PX = 0.4  # at a width of 320 px
_SMOOTH_SUPPORT = 0.1  # of pixels that only the smooth match has; it is 1 where both matches agree
_SMOOTH_LARGEST_GRADIENT = 31
_BEHIND_PX, _CONSISTENT_PX, _CONSISTENT_SIDE_PX = 4.0, 0.7, 15  # at a width of 320 px
_CONSISTENT_DENSITY, _BEHIND_SUPPORT, _BEHIND_MARGIN_PX = 0.6, 0.5, 1.0
_LEAST_BEHIND_SHARE = 1 / 1500
"""Of the pixels; fewer are noise."""
_CERTAIN_SUPPORT = 0.95
_NEAR_COARSE_PX = 2.0  # at a width of 320 px
_WLS_LAMBDA = 40.0
_WLS_SIGMA = 4.0  # levels of 256 between neighbours that reduce the smoothness to 1/e


def disparities_for(width: int, share: float = _SHARE_OF_WIDTH) -> int:
    """Return how many disparities to search in images of this width, px: a fraction of it, in steps of 16.

    >>> disparities_for(320), disparities_for(1280)
    (64, 256)
    """
    return int(np.ceil(width * share / _STEPS_PER_PX)) * _STEPS_PER_PX


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
    area = 3 * _BLOCK_PX**2  # of the block, over its channels
    steps, matched = _match(
        left, right, disparities, step_penalty=8 * area, jump_penalty=32 * area, uniqueness_percent=10, speckle_px=100
    )
    disparity_px = filled_from_background(steps.astype(np.float32) / _STEPS_PER_PX, matched)
    return StereoMatch(disparity_px=disparity_px, valid=matched)


def prior_planes(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "10 H W"]:
    """What a network that corrects this matcher wants to know: see `PRIOR_PLANES`.

    It compares luminance alone, in little more than half the time, with smoothness penalties a half and a quarter of
    the advised ones, and a median over the result: at 320x240 this is better on every measure (docs/experiments).
    It searches only between the least and the most disparity that a coarse match of small images finds, and where that
    finds the right view exposed differently, it equalises the exposure first. The right view is warped by the
    disparity: its pixel (x - d, y) stands at (x, y), and less it the left view, 0..1, is about nothing where the answer
    is right. At an edge, the least and the most of the disparities around tell what would be seen there if the pixel
    belonged to the surface behind, or to the one in front.
    """
    planes = np.empty((PRIOR_PLANES, *left.shape[:2]), np.float32)
    _write_prior_planes(left, right, planes)
    return planes


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
        return range(least, least + max(1, math.ceil((most_px - least) / _STEPS_PER_PX)) * _STEPS_PER_PX)

    def expose(self, right: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
        """Return the right view exposed as the left one is."""
        return right if self.levels is None else np.asarray(cv2.LUT(right, self.levels), np.uint8)


class _MatchInputs(NamedTuple):
    """What the first match computed and a second one reuses.

    Attributes:
        grey_left, grey_right: luminance, exposure equalised.
        disparities: the search range, px.
    """

    grey_left: UInt8[np.ndarray, "H W"]
    grey_right: UInt8[np.ndarray, "H W"]
    disparities: range


def _write_prior_planes(
    left: UInt8[np.ndarray, "H W 3"],
    right: UInt8[np.ndarray, "H W 3"],
    planes: Float32[np.ndarray, "10 H W"],
    search: Search | None = None,
) -> _MatchInputs:
    """Write `prior_planes` of the pair into `planes`."""
    height, width = left.shape[:2]
    area = _BLOCK_PX**2
    search = search or find_search(left, right)
    right = search.expose(right)
    grey_left, grey_right, disparities = _grey(left), _grey(right), search.disparities(width)
    steps, matched = _match(
        grey_left,
        grey_right,
        disparities,
        step_penalty=4 * area,
        jump_penalty=8 * area,
        uniqueness_percent=15,
        speckle_px=150,
    )
    # Where nothing at all was matched the network begins at "far away".
    steps = filled_from_background(steps, matched) if matched.any() else np.zeros_like(steps)
    unlike = np.empty((height, width, 3), np.float32)
    np.divide(cv2.medianBlur(steps.view(np.uint16), _MEDIAN_PX), _STEPS_PER_PX, out=planes[0])
    cv2.erode(planes[0], _AROUND, dst=planes[1])
    cv2.dilate(planes[0], _AROUND, dst=planes[2])
    planes[3] = matched
    cv2.subtract(left, warp(right, planes[0]), dst=unlike, dtype=cv2.CV_32F)
    cv2.split(unlike, list(planes[4:7]))
    cv2.subtract(grey_left, warp(grey_right, planes[1]), dst=planes[7], dtype=cv2.CV_32F)
    cv2.subtract(grey_left, warp(grey_right, planes[2]), dst=planes[8], dtype=cv2.CV_32F)
    planes[4:9] /= 255
    # Differences are taken here, in 32 bits: 16 would round 60 px to a quarter.
    planes[1:3] -= planes[0]
    np.subtract(planes[0], _means_of_squares(planes[0]), out=planes[9])
    return _MatchInputs(grey_left, grey_right, disparities)


class SmoothMatch(NamedTuple):
    """A match by large smoothness penalties.

    Attributes:
        disparity_px: holes filled.
        valid: 1 where it is matched, else 0.
    """

    disparity_px: Float32[np.ndarray, "H W"]
    valid: Float32[np.ndarray, "H W"]

    def resize(self, height: int, width: int) -> "SmoothMatch":
        """Return the match at another size, in px of it."""
        own_width = self.disparity_px.shape[1]
        if self.disparity_px.shape == (height, width):
            return self
        mode = cv2.INTER_AREA if width < own_width else cv2.INTER_LINEAR
        disparity_px, valid = (cv2.resize(plane, (width, height), interpolation=mode) for plane in self)
        return SmoothMatch(disparity_px * np.float32(width / own_width), (valid > 0.5).astype(np.float32))


class CoarsePrediction(NamedTuple):
    """What a network predicted at half of the size, enlarged.

    Attributes:
        disparity_px: in px of the pair.
        sigma_px: standard deviation of its error.
    """

    disparity_px: Float32[np.ndarray, "H W"]
    sigma_px: Float32[np.ndarray, "H W"]


def smooth_match(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"], search: Search) -> SmoothMatch:
    """Match by large penalties at about 320x120, whatever the size of the pair.

    Args:
        left: RGB, rectified.
        right: the same.
        search: of the pair, at any size.
    """
    width = left.shape[1]
    inputs = _MatchInputs(_grey(left), _grey(search.expose(right)), search.disparities(width))
    return _match_smooth(inputs, max(1, round(width / _SMOOTH_WIDTH_PX)))


def two_prior_planes(
    left: UInt8[np.ndarray, "H W 3"],
    right: UInt8[np.ndarray, "H W 3"],
    smooth: SmoothMatch | None = None,
    coarse: CoarsePrediction | None = None,
    search: Search | None = None,
) -> Float32[np.ndarray, "16 H W"]:
    """Return the prior of a network that chooses between two matches: see `TWO_PRIOR_PLANES`.

    Small smoothness penalties keep the edges of textured surfaces, and give random disparities on textureless and on
    repetitive ones; large penalties are right there, and round off edges. No setting serves both. The second match, by
    large penalties, runs at about 320x120 whatever the size of the pair, since textureless surfaces have no detail to
    lose. A third disparity is interpolated from it, above all from where the two agree, up to edges of the image: it
    extends a wall from its borders. Where the first match says consistently that a wall is behind, both are moved
    there.

    At half of the size a network sees twice as far. What it predicts there takes the place of the smooth match, and of
    the interpolated disparity where they differ by much.

    Args:
        left: RGB, rectified.
        right: the same.
        smooth: of the pair, at any size; None computes it.
        coarse: of the pair; None where there is none.
        search: of the pair, at any size; None computes it.
    """
    height, width = left.shape[:2]
    planes = np.empty((TWO_PRIOR_PLANES, height, width), np.float32)
    inputs = _write_prior_planes(left, right, planes[:PRIOR_PLANES], search)
    scale, factor = width / _SMOOTH_WIDTH_PX, max(1, round(width / _SMOOTH_WIDTH_PX))
    smooth_px, smooth_valid = (smooth or _match_smooth(inputs, factor)).resize(height, width)
    agree = (planes[3] > 0) & (smooth_valid > 0) & (np.abs(planes[0] - smooth_px) < _AGREE_PX * scale)
    support = np.where(agree, np.float32(1), _SMOOTH_SUPPORT * smooth_valid)
    # The first match is less accurate where it agrees: of a plain wall it is 0.3 px too far.
    interpolated_px, support = _interpolate(smooth_px, support, inputs.grey_left, 2 * factor)
    second_px, trust = smooth_px, smooth_valid
    if coarse is not None:
        second_px, trust = coarse.disparity_px, np.exp(coarse.sigma_px * np.float32(-1 / scale))
        is_near = np.abs(interpolated_px - second_px) < _NEAR_COARSE_PX * scale
        interpolated_px = np.where(is_near, interpolated_px, second_px)
    elif (found := _find_behind(planes, smooth_px, support, inputs.grey_left, factor)) is not None:
        behind_px, behind_support = found
        nearest_px = np.where(behind_support > 0, behind_px + _BEHIND_MARGIN_PX * scale, np.inf)
        support = np.where(interpolated_px > nearest_px, behind_support, support)
        interpolated_px = np.where(interpolated_px > nearest_px, behind_px, interpolated_px)
        second_px = np.where(smooth_px > nearest_px, behind_px, smooth_px)
    planes[11], planes[14] = trust, support
    for first, disparity_px in ((10, second_px), (13, interpolated_px)):
        np.subtract(disparity_px, planes[0], out=planes[first])
        warped = warp(inputs.grey_right, disparity_px)
        cv2.subtract(inputs.grey_left, warped, dst=planes[first + 2], dtype=cv2.CV_32F)
        planes[first + 2] /= 255
    return planes


def _match_smooth(inputs: _MatchInputs, factor: int) -> SmoothMatch:
    """Return the match by large penalties, enlarged to the full size.

    Args:
        inputs: of the first match.
        factor: by which the width is divided.
    """
    height, width = inputs.grey_left.shape
    size = (max(1, width // factor), max(1, height // max(2, round(height / _SMOOTH_HEIGHT_PX))))
    left, right = (
        np.asarray(cv2.resize(view, size, interpolation=cv2.INTER_AREA), np.uint8)
        for view in (inputs.grey_left, inputs.grey_right)
    )
    first = inputs.disparities.start // factor
    count = math.ceil((inputs.disparities.stop / factor - first) / _STEPS_PER_PX) * _STEPS_PER_PX
    area = _BLOCK_PX**2
    steps, valid = _match(
        left,
        right,
        range(first, first + count),
        step_penalty=_SMOOTH_STEP_PENALTY * area,
        jump_penalty=_SMOOTH_JUMP_PENALTY * area,
        uniqueness_percent=10,
        speckle_px=100 // (2 * factor),
        largest_gradient=_SMOOTH_LARGEST_GRADIENT,
    )
    steps = filled_from_background(steps, valid) if valid.any() else np.zeros_like(steps)
    small_px = cv2.medianBlur(steps.view(np.uint16), _MEDIAN_PX).astype(np.float32)
    small_px *= width / size[0] / _STEPS_PER_PX
    return SmoothMatch(
        np.asarray(cv2.resize(small_px, (width, height), interpolation=cv2.INTER_LINEAR)),
        np.asarray(cv2.resize(valid.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)),
    )


def _interpolate(
    disparity_px: Float32[np.ndarray, "H W"],
    support: Float32[np.ndarray, "H W"],
    grey: UInt8[np.ndarray, "H W"],
    factor: int,
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    """Return an edge-aware interpolation of the disparity where it has support, and the support of each pixel of it.

    Weighted least squares along rows, then along columns (Min et al., "Fast global image smoothing based on weighted
    least squares", TIP 2014), of disparity times support and of support, then divided. Between two supported borders
    the result is linear, as the disparity of a plane is. A second pass changes nothing that can be measured.

    Args:
        disparity_px: where the support is 0 it does not matter.
        support: weight of each pixel, 0 to 1.
        grey: the image at whose edges the disparity may jump.
        factor: by which height and width are divided for the computation.
    """
    height, width = grey.shape
    size = (max(1, width // factor), max(1, height // factor))

    def reduce(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA))

    levels = reduce(grey).astype(np.float32)
    across, down = (np.exp(np.abs(np.diff(levels, axis=axis)) * np.float32(-1 / _WLS_SIGMA)) for axis in (1, 0))
    values = np.stack([reduce(disparity_px * support), reduce(support)])
    values = _smooth_rows(values, _WLS_LAMBDA * across)
    values = _smooth_rows(values.transpose(0, 2, 1), _WLS_LAMBDA * down.T).transpose(0, 2, 1)
    weighted_px, support = values
    interpolated_px = weighted_px / np.maximum(support, np.float32(1e-6))
    support = np.sqrt(np.sqrt(support.clip(0, 1)))
    interpolated_px, support = (
        np.asarray(cv2.resize(np.ascontiguousarray(plane), (width, height), interpolation=cv2.INTER_LINEAR))
        for plane in (interpolated_px, support)
    )
    return interpolated_px, support


def _find_behind(
    planes: Float32[np.ndarray, "16 H W"],
    smooth_px: Float32[np.ndarray, "H W"],
    support: Float32[np.ndarray, "H W"],
    grey: UInt8[np.ndarray, "H W"],
    factor: int,
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]] | None:
    """Return the disparity of what the first match finds behind the smooth one, and its support; 0 where it is not.

    Large penalties give a plain wall the disparity of the object before it. By small ones a part of the wall is matched
    by its faint texture: densely, alike over a window, and far behind. That is extended up to edges of the image, as
    far as it has more support than where both matches agree. What is random on a wall is not alike over a window.
    """
    first_px, matched = planes[0], planes[3]
    scale = first_px.shape[1] / _SMOOTH_WIDTH_PX
    side = int(_CONSISTENT_SIDE_PX * scale) | 1

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.blur(values, (side, side)))

    density, matched_px = mean(matched), first_px * matched
    per_match = 1 / np.maximum(density, np.float32(1e-3))
    variance = mean(matched_px * matched_px) * per_match - (mean(matched_px) * per_match) ** 2
    is_behind = (matched > 0) & (density > _CONSISTENT_DENSITY) & (variance < (_CONSISTENT_PX * scale) ** 2)
    is_behind &= smooth_px - first_px > _BEHIND_PX * scale
    if is_behind.mean() < _LEAST_BEHIND_SHARE:
        return None
    behind_px, behind_support = _interpolate(first_px, is_behind.astype(np.float32), grey, 2 * factor)
    certain = (support > _CERTAIN_SUPPORT).astype(np.float32)
    _, certain_support = _interpolate(first_px, certain, grey, 2 * factor)
    is_behind = (behind_support > _BEHIND_SUPPORT) & (behind_support > certain_support)
    return behind_px, behind_support * is_behind


def _smooth_rows(
    values: Float32[np.ndarray, "n h w"], weights: Float32[np.ndarray, "h w-1"]
) -> Float32[np.ndarray, "n h w"]:
    """Return the values smoothed along rows, by one tridiagonal system for all rows.

    Args:
        values: of n maps.
        weights: of the squared difference between each pixel and the next of its row.
    """
    _, height, width = values.shape
    coupling = np.zeros((height, width), np.float32)
    coupling[:, :-1] = weights
    coupling = coupling.ravel()
    diagonal = 1 + coupling
    diagonal[1:] += coupling[:-1]
    right_sides = values.reshape(len(values), -1).T
    *_, solved, _ = _lapack().sptsv(diagonal, -coupling[:-1], right_sides)
    return solved.T.reshape(values.shape)


@functools.cache
def _lapack() -> Any:
    """Return SciPy's LAPACK.

    Its compiled module is loaded without the package scipy.linalg around it, which takes 0.8 s of a processor to
    import: twenty times as long. Where SciPy keeps it elsewhere, the package is imported.
    """
    scipy = importlib.import_module("scipy")  # which finds its libraries
    name = "_flapack"
    found = PathFinder.find_spec(name, [str(Path(scipy.__file__ or "").with_name("linalg"))])
    if found is None or found.loader is None:
        return importlib.import_module("scipy.linalg.lapack")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _means_of_squares(values: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """At each pixel the mean over its square; squares are counted from the upper left, where networks begin theirs."""
    height, width = values.shape
    below, beside = -height % _SQUARE_PX, -width % _SQUARE_PX
    whole = cv2.copyMakeBorder(values, 0, below, 0, beside, cv2.BORDER_REPLICATE)
    squares = ((width + beside) // _SQUARE_PX, (height + below) // _SQUARE_PX)
    means = cv2.resize(whole, squares, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(means, whole.shape[::-1], interpolation=cv2.INTER_NEAREST))[:height, :width]


def _grey(view: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    return np.asarray(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), np.uint8)


def find_search(left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]) -> Search:
    """Return where to look for matches, and how to expose the right view, by a match of images a quarter of the size.

    Args:
        left: RGB, rectified.
        right: the same.
    """
    width = left.shape[1]
    size = (width // _PROBE_SHRINKS, left.shape[0] // _PROBE_SHRINKS)
    small_left, small_right = (cv2.resize(_grey(view), size, interpolation=cv2.INTER_AREA) for view in (left, right))
    # From another position an image keeps its mean and deviation roughly, which is enough for a coarse match.
    small_right = cv2.LUT(small_right, _levels(*cv2.meanStdDev(small_left), *cv2.meanStdDev(small_right)))
    area = _BLOCK_PX**2
    steps, matched = _match(
        np.asarray(small_left, np.uint8),
        np.asarray(small_right, np.uint8),
        range(_FARTHEST_PX, _FARTHEST_PX + disparities_for(size[0], _PROBE_SHARE_OF_WIDTH)),
        step_penalty=4 * area,
        jump_penalty=8 * area,
        uniqueness_percent=10,
        speckle_px=20,
    )
    rows, columns = np.nonzero(matched)
    if not len(rows):
        return Search(math.nan, math.nan, width, None)
    known = steps[rows, columns].astype(np.float32) / _STEPS_PER_PX
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


def _match(
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
        blockSize=_BLOCK_PX,
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
        return np.maximum(steps, 0), steps >= int(_LEAST_PX * _STEPS_PER_PX)
    # The smallest disparity searched is not a match: points that are farther get it too, and so do wrong matches.
    return steps, steps > max(disparities.start * _STEPS_PER_PX - 1, 0)


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
