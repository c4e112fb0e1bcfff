"""The priors of networks: by how many planes a network takes, the function that computes them.

NumPy, OpenCV and LAPACK only.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int16, UInt8

from foundation_stereo_depth.stereo.interpolation import interpolate
from foundation_stereo_depth.stereo.sgbm import (
    BLOCK_PX,
    STEPS_PER_PX,
    Search,
    filled_from_background,
    find_search,
    match_steps,
    to_grey,
)
from foundation_stereo_depth.stereo.subpixel import warp

PRIOR_PLANES = 10
"""Planes of `prior_planes`, disparities in px: the disparity; by how much the least and the most around each pixel
differ from it; 1 where the matcher itself answered; the left view less the right one warped by the disparity, RGB, and
by the least and the most, grey; by how much the disparity differs from the mean of its square."""

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
_TEXTURELESS_BELOW = 0.6  # squared gradients of the blurred view, (levels of 256 / px)^2 at a width of 320 px
_TEXTURE_BLUR_PX, _TEXTURE_SIDE_PX = 1.0, 13  # blur and window at that width

_MEDIAN_PX = 5
_SQUARE_PX = 16
_AROUND = np.ones((9, 9), np.uint8)
_THREADS = 16

Result = TypeVar("Result")


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
    return first_match(left, right, planes=PRIOR_PLANES).planes


class FirstMatch(NamedTuple):
    """The match by small penalties.

    Attributes:
        planes: the prior, of which those of `prior_planes` are written.
        grey_left, grey_right: luminance, exposure equalised.
        disparities: the search range, px.
    """

    planes: Float32[np.ndarray, "planes H W"]
    grey_left: UInt8[np.ndarray, "H W"]
    grey_right: UInt8[np.ndarray, "H W"]
    disparities: range


def first_match(
    left: UInt8[np.ndarray, "H W 3"],
    right: UInt8[np.ndarray, "H W 3"],
    search: Search | None = None,
    half: FirstMatch | None = None,
    *,
    planes: int = TWO_PRIOR_PLANES,
) -> FirstMatch:
    """Match by small penalties, and write `prior_planes`.

    Args:
        left: RGB, rectified.
        right: the same.
        search: of the pair, at any size; None computes it.
        half: the match of the pair at half of the size. It stands where there is no texture: faint traces of it are
            found at a smaller size rather than at a larger one.
        planes: of the whole prior.
    """
    prior = np.empty((planes, *left.shape[:2]), np.float32)
    height, width = left.shape[:2]
    area = BLOCK_PX**2
    search = search or find_search(left, right)
    right = search.expose(right)
    grey_left, grey_right, disparities = to_grey(left), to_grey(right), search.disparities(width)
    steps, matched = match_steps(
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
    if half is not None and (textureless := _find_textureless(grey_left)).any():
        cv2.copyTo(_enlarged_steps(half.planes[0], height, width), textureless, steps)
        half_matched = cv2.resize(half.planes[3], (width, height), interpolation=cv2.INTER_NEAREST)
        matched = np.where(textureless, half_matched > 0, matched)
    unlike = np.empty((height, width, 3), np.float32)
    np.multiply(cv2.medianBlur(steps.view(np.uint16), _MEDIAN_PX), np.float32(1 / STEPS_PER_PX), out=prior[0])
    cv2.erode(prior[0], _AROUND, dst=prior[1])
    cv2.dilate(prior[0], _AROUND, dst=prior[2])
    prior[3] = matched
    _write_difference(left, warp(right, prior[0]), unlike)
    cv2.split(unlike, list(prior[4:7]))
    _write_difference(grey_left, warp(grey_right, prior[1]), prior[7])
    _write_difference(grey_left, warp(grey_right, prior[2]), prior[8])
    # Differences are taken here, in 32 bits: 16 would round 60 px to a quarter.
    prior[1:3] -= prior[0]
    np.subtract(prior[0], _means_of_squares(prior[0]), out=prior[9])
    return FirstMatch(prior, grey_left, grey_right, disparities)


def _find_textureless(grey: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Return 1 where a view has no texture, else 0."""
    height, width = grey.shape
    factor = _smooth_factor(width)
    small = cv2.resize(grey, (width // factor, max(1, height // factor)), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small.astype(np.float32), (0, 0), _TEXTURE_BLUR_PX)  # noise is no texture
    gradient = cv2.Sobel(blurred, cv2.CV_32F, 1, 0, scale=1 / 8)
    energy = cv2.blur(gradient * gradient, (_TEXTURE_SIDE_PX, _TEXTURE_SIDE_PX))
    textureless = (energy < _TEXTURELESS_BELOW).view(np.uint8)
    return np.asarray(cv2.resize(textureless, (width, height), interpolation=cv2.INTER_NEAREST))


def _enlarged_steps(half_px: Float32[np.ndarray, "h w"], height: int, width: int) -> Int16[np.ndarray, "H W"]:
    """Return a disparity of half the size in steps of the size, its edges as sharp as they are."""
    linear, nearest = (
        cv2.resize(half_px, (width, height), interpolation=mode) for mode in (cv2.INTER_LINEAR, cv2.INTER_NEAREST)
    )
    enlarged_px = np.where(np.abs(linear - nearest) < 1, linear, nearest)
    return np.rint(enlarged_px * (STEPS_PER_PX * width / half_px.shape[1])).astype(np.int16)


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
    return _match_smooth(to_grey(left), to_grey(search.expose(right)), search.disparities(left.shape[1]))


def two_prior_planes(
    left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"]
) -> Float32[np.ndarray, "16 H W"]:
    """Return the prior of a network that chooses between two matches: see `TWO_PRIOR_PLANES`.

    Small smoothness penalties keep the edges of textured surfaces, and give random disparities on textureless and on
    repetitive ones; large penalties are right there, and round off edges. No setting serves both. The second match, by
    large penalties, runs at about 320x120 whatever the size of the pair, since textureless surfaces have no detail to
    lose. A third disparity is interpolated from it, above all from where the two agree, up to edges of the image: it
    extends a wall from its borders. Where the first match says consistently that a wall is behind, both are moved
    there.

    Args:
        left: RGB, rectified.
        right: the same.
    """
    return add_smooth_match(first_match(left, right)).complete(None)


class TwoMatches(NamedTuple):
    """The first and the smooth match of a pair, and the disparity interpolated from them.

    Attributes:
        planes: `two_prior_planes`, of which the first match has written its own.
        grey_left, grey_right: luminance, exposure equalised.
        smooth: the match by large penalties, at the size of the pair.
        interpolated_px, support: from where both agree.
    """

    planes: Float32[np.ndarray, "16 H W"]
    grey_left: UInt8[np.ndarray, "H W"]
    grey_right: UInt8[np.ndarray, "H W"]
    smooth: SmoothMatch
    interpolated_px: Float32[np.ndarray, "H W"]
    support: Float32[np.ndarray, "H W"]

    def complete(self, coarse: CoarsePrediction | None) -> Float32[np.ndarray, "16 H W"]:
        """Write the other planes of `two_prior_planes`, once, and return all of them.

        At half of the size a network sees twice as far. What it predicts there takes the place of the smooth match, and
        of the interpolated disparity where they differ by much.

        Args:
            coarse: of the pair; None where there is none.
        """
        planes, grey_left, grey_right, (second_px, trust), interpolated_px, support = self
        scale = grey_left.shape[1] / _SMOOTH_WIDTH_PX
        if coarse is not None:
            second_px, trust = coarse.disparity_px, np.exp(coarse.sigma_px * np.float32(-1 / scale))
            is_far = np.abs(interpolated_px - second_px) >= _NEAR_COARSE_PX * scale
            cv2.copyTo(second_px, is_far.view(np.uint8), interpolated_px)  # in half the time of np.where
        elif (found := _find_behind(planes, second_px, support, grey_left)) is not None:
            behind_px, behind_support = found
            nearest_px = np.where(behind_support > 0, behind_px + _BEHIND_MARGIN_PX * scale, np.inf)
            support = np.where(interpolated_px > nearest_px, behind_support, support)
            interpolated_px = np.where(interpolated_px > nearest_px, behind_px, interpolated_px)
            second_px = np.where(second_px > nearest_px, behind_px, second_px)
        planes[11], planes[14] = trust, support
        for at, disparity_px in ((10, second_px), (13, interpolated_px)):
            np.subtract(disparity_px, planes[0], out=planes[at])
            _write_difference(grey_left, warp(grey_right, disparity_px), planes[at + 2])
        return planes


def add_smooth_match(first: FirstMatch, smooth: SmoothMatch | None = None) -> TwoMatches:
    """Return both matches of a pair, and interpolate.

    Args:
        first: its planes have room for those of `two_prior_planes`.
        smooth: of the pair, at any size; None computes it.
    """
    planes, grey_left, grey_right, disparities = first
    height, width = grey_left.shape
    smooth = (smooth or _match_smooth(grey_left, grey_right, disparities)).resize(height, width)
    agree = (planes[3] > 0) & (smooth.valid > 0)
    agree &= np.abs(planes[0] - smooth.disparity_px) < _AGREE_PX * width / _SMOOTH_WIDTH_PX
    support = np.maximum(agree, _SMOOTH_SUPPORT * smooth.valid)
    # The first match is less accurate where it agrees: of a plain wall it is 0.3 px too far.
    interpolated_px, support = _interpolate(smooth.disparity_px, support, grey_left)
    return TwoMatches(planes, grey_left, grey_right, smooth, interpolated_px, support)


def _write_difference(
    left: UInt8[np.ndarray, "H W *channels"],
    warped: UInt8[np.ndarray, "H W *channels"],
    difference: Float32[np.ndarray, "H W *channels"],
) -> None:
    """Write by how much the left view is lighter than the warped right one, -1 to 1."""
    cv2.addWeighted(left, 1 / 255, warped, -1 / 255, 0, dst=difference, dtype=cv2.CV_32F)


def _match_smooth(
    grey_left: UInt8[np.ndarray, "H W"], grey_right: UInt8[np.ndarray, "H W"], disparities: range
) -> SmoothMatch:
    """Return the match by large penalties, enlarged to the full size.

    Args:
        grey_left: luminance, exposure equalised.
        grey_right: the same.
        disparities: to search at the full size.
    """
    height, width = grey_left.shape
    factor = _smooth_factor(width)
    size = (max(1, width // factor), max(1, height // max(2, round(height / _SMOOTH_HEIGHT_PX))))
    left, right = (
        np.asarray(cv2.resize(view, size, interpolation=cv2.INTER_AREA), np.uint8) for view in (grey_left, grey_right)
    )
    first = disparities.start // factor
    count = math.ceil((disparities.stop / factor - first) / STEPS_PER_PX) * STEPS_PER_PX
    area = BLOCK_PX**2
    steps, valid = match_steps(
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
    small_px *= width / size[0] / STEPS_PER_PX
    return SmoothMatch(
        np.asarray(cv2.resize(small_px, (width, height), interpolation=cv2.INTER_LINEAR)),
        np.asarray(cv2.resize(valid.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)),
    )


def _smooth_factor(width: int) -> int:
    """Return by what the width is divided for the smooth match."""
    return max(1, round(width / _SMOOTH_WIDTH_PX))


def _interpolate(
    disparity_px: Float32[np.ndarray, "H W"],
    support: Float32[np.ndarray, "H W"],
    grey: UInt8[np.ndarray, "H W"],
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    """Return `interpolate` at half the size of the smooth match."""
    return interpolate(disparity_px, support, grey, 2 * _smooth_factor(grey.shape[1]))


def _find_behind(
    planes: Float32[np.ndarray, "16 H W"],
    smooth_px: Float32[np.ndarray, "H W"],
    support: Float32[np.ndarray, "H W"],
    grey: UInt8[np.ndarray, "H W"],
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
    behind_px, behind_support = _interpolate(first_px, is_behind.astype(np.float32), grey)
    certain = (support > _CERTAIN_SUPPORT).astype(np.float32)
    _, certain_support = _interpolate(first_px, certain, grey)
    is_behind = (behind_support > _BEHIND_SUPPORT) & (behind_support > certain_support)
    return behind_px, behind_support * is_behind


def _means_of_squares(values: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """At each pixel the mean over its square; squares are counted from the upper left, where networks begin theirs."""
    height, width = values.shape
    below, beside = -height % _SQUARE_PX, -width % _SQUARE_PX
    whole = cv2.copyMakeBorder(values, 0, below, 0, beside, cv2.BORDER_REPLICATE)
    squares = ((width + beside) // _SQUARE_PX, (height + below) // _SQUARE_PX)
    means = cv2.resize(whole, squares, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(means, whole.shape[::-1], interpolation=cv2.INTER_NEAREST))[:height, :width]


PRIORS = {PRIOR_PLANES: prior_planes, TWO_PRIOR_PLANES: two_prior_planes}
"""The functions that compute priors, by their number of planes."""


def priors_of(pairs: UInt8[np.ndarray, "B 2 H W 3"], planes: int = PRIOR_PLANES) -> Float[np.ndarray, "B planes H W"]:
    """Return the prior of so many planes for each pair of RGB views."""
    return np.stack(for_each_pair(PRIORS[planes], pairs[:, 0], pairs[:, 1]))


def for_each_pair(function: Callable[..., Result], *arguments: Iterable[Any]) -> list[Result]:
    """Return the function's result for the arguments of each pair; by threads, since OpenCV releases Python's lock."""
    calls = list(zip(*arguments, strict=True))
    if len(calls) == 1:
        return [function(*calls[0])]
    with ThreadPoolExecutor(min(len(calls), _THREADS)) as pool:
        return list(pool.map(function, *zip(*calls, strict=True)))
