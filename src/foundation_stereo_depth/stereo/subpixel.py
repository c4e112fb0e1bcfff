"""Fractions of a pixel of disparity, by least squares over windows: Lucas and Kanade along rows.

NumPy and OpenCV only.
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Real, UInt8

_SIGMA_PX = 0.8
_LEAST_GRADIENT_SQUARED = 1.0
_LARGEST_RESIDUAL = 8.0  # levels of 256

_WIDTH_PX = 320  # flat surfaces are refined at about this width
_SMOOTHED_SIDE_PX, _SIDE_PX, _LOCAL_MEAN_SIDE_PX = 11, 15, 7
_FLAT_WITHIN_PX, _LARGEST_UPDATE_PX = 2.0, 0.3
_NOWHERE_PX = -1000.0  # far enough from any disparity that its surroundings are not flat
_AROUND = np.ones((_SIDE_PX + _LOCAL_MEAN_SIDE_PX - 1,) * 2, np.uint8)

_PLANE_WIDTH_PX, _PLANE_SIDE_PX = 80, 15  # planes are fitted at about this width
_PLANE_WITHIN_PX, _PLANE_DEVIATION = 0.6, 0.3  # at a width of 320 px; of the deviation, what is left on a plane
_SMALL_SIGMA_PX, _LARGE_SIGMA_PX = 0.3, 0.6  # at a width of 320 px: up to the one it shrinks, from the other on not
_TEXTURED_FROM, _TEXTURED_FULLY = 8.0, 100.0  # squared gradients, (levels of 256 / px)^2 at a width of 320 px
_TEXTURELESS_BELOW, _TEXTURELESS_DEVIATION = 0.2, 1.1


class RefinedDisparity(NamedTuple):
    """A disparity that was refined.

    Attributes:
        disparity_px: of the left view.
        change_px: what was added to it.
        is_flat: where it was refined; elsewhere it is unchanged. At a width of about 320 px.
        gradient_squared: mean over a window, (levels of 256 / px)^2, at that width and in px of it.
    """

    disparity_px: Float32[np.ndarray, "H W"]
    change_px: Float32[np.ndarray, "H W"]
    is_flat: Bool[np.ndarray, "h w"]
    gradient_squared: Float32[np.ndarray, "h w"]

    def sigma_px(self, before_px: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
        """Return the standard deviation of its error, px.

        Where the refinement changed much, the error before it was large. On a textured plane, as boards are, it is
        small, since there the least squares have many pixels that see the same; but not where the network says that it
        is large, as it does where a repeated pattern may be matched one period off. Without texture they see nothing,
        and neither did the network. The factors are fitted to real scenes (docs/experiments/accuracy.md).

        Args:
            before_px: the same before the refinement.
        """
        height, width = before_px.shape
        size = _size_of_about(width, height, _PLANE_WIDTH_PX)
        per_px = np.float32(_WIDTH_PX / width)
        flat, squares, sigma_px, disparity_px = (
            np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA))
            for values in (self.is_flat.astype(np.float32), self.gradient_squared, before_px, _known(self.disparity_px))
        )
        textured = np.log(np.maximum(squares / _TEXTURED_FROM, 1)) / math.log(_TEXTURED_FULLY / _TEXTURED_FROM)
        on_plane = flat * np.maximum(1 - _distance_from_plane_px(disparity_px) * per_px / _PLANE_WITHIN_PX, 0)
        on_plane *= np.clip((_LARGE_SIGMA_PX - sigma_px * per_px) / (_LARGE_SIGMA_PX - _SMALL_SIGMA_PX), 0, 1)
        factor = 1 - (1 - _PLANE_DEVIATION) * np.minimum(textured, 1) * on_plane
        factor *= 1 + (_TEXTURELESS_DEVIATION - 1) * np.maximum(1 - squares / _TEXTURELESS_BELOW, 0)
        factor = cv2.resize(factor.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        # Not cv2.magnitude, whose last bit depends on where its arrays begin in memory.
        return np.sqrt(before_px * before_px + self.change_px * self.change_px) * factor


def lucas_kanade_update(
    left: Real[np.ndarray, "H W"],
    right: Real[np.ndarray, "H W"],
    disparity_px: Float32[np.ndarray, "H W"],
    *,
    side_px: int,
    local_mean_side_px: int,
    largest_px: float,
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    """Return by how much a disparity is to change, px, and the mean squared gradient of the views, (levels / px)^2.

    One step of least squares over square windows.

    Lucas and Kanade, "An iterative image registration technique", IJCAI 1981. The right view is warped by the
    disparity; both views are compared less their local means, so that light and exposure do not count.

    Args:
        left: luminance, rectified.
        right: the same.
        disparity_px: to refine.
        side_px: of the window.
        local_mean_side_px: of the square over which the local mean is taken.
        largest_px: the most that a pixel may change.
    """

    def less_mean(view: np.ndarray) -> np.ndarray:
        return view - _mean(view, local_mean_side_px)

    soft_left, soft_right = (
        np.asarray(cv2.GaussianBlur(view.astype(np.float32), (0, 0), _SIGMA_PX)) for view in (left, right)
    )
    detail, warped = less_mean(soft_left), less_mean(warp(soft_right, disparity_px))
    gradient = np.asarray(cv2.Sobel(detail + warped, cv2.CV_32F, 1, 0, scale=1 / 16))
    residual = np.clip(detail - warped, -_LARGEST_RESIDUAL, _LARGEST_RESIDUAL)
    products, squares = (_mean(gradient * values, side_px) for values in (residual, gradient))
    update_px = np.clip(-products / (squares + np.float32(_LEAST_GRADIENT_SQUARED)), -largest_px, largest_px)
    return update_px, squares


def refine_flat_surfaces(
    left: UInt8[np.ndarray, "H W 3"], right: UInt8[np.ndarray, "H W 3"], disparity_px: Float32[np.ndarray, "H W"]
) -> RefinedDisparity:
    """Return the disparity with fractions of a pixel found again where a surface is flat, as walls and boards are.

    There, within 21x21 px at a width of 320 px, it differs by less than 2 px. It is smoothed, which leaves planes what
    they are, and refined by a step of Lucas-Kanade of at most 0.3 px. Beside edges of depth nothing changes.

    Args:
        left: RGB, rectified.
        right: the same.
        disparity_px: what is not finite stays so, and nothing changes around it.
    """
    height, width = disparity_px.shape
    known_px = _known(disparity_px)
    size = _size_of_about(width, height, _WIDTH_PX)
    per_px = np.float32(width / size[0])

    def shrink(values: np.ndarray) -> np.ndarray:
        return values if size == (width, height) else np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA))

    small_px = shrink(known_px) / per_px
    is_flat = cv2.dilate(small_px, _AROUND) - cv2.erode(small_px, _AROUND) < _FLAT_WITHIN_PX
    smoothed_px = _mean(small_px, _SMOOTHED_SIDE_PX)
    grey_left, grey_right = (shrink(np.asarray(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))) for view in (left, right))
    update_px, gradient_squared = lucas_kanade_update(
        grey_left,
        grey_right,
        smoothed_px,
        side_px=_SIDE_PX,
        local_mean_side_px=_LOCAL_MEAN_SIDE_PX,
        largest_px=_LARGEST_UPDATE_PX,
    )
    change_px = np.where(is_flat, smoothed_px + update_px - small_px, np.float32(0)) * per_px
    if size != (width, height):
        change_px = cv2.resize(change_px, (width, height), interpolation=cv2.INTER_LINEAR)
    # What is infinitely far stays at 0 or more.
    refined_px = np.maximum(known_px + change_px, np.minimum(known_px, 0))
    if known_px is not disparity_px:
        refined_px = np.where(np.isfinite(disparity_px), refined_px, disparity_px)
    return RefinedDisparity(refined_px, np.asarray(change_px), is_flat, gradient_squared)


def _known(disparity_px: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Return the disparity, far from any other where it is not finite."""
    is_known = np.isfinite(disparity_px)
    return disparity_px if is_known.all() else np.where(is_known, disparity_px, np.float32(_NOWHERE_PX))


def _distance_from_plane_px(disparity_px: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return the root mean square of what a plane fitted around each pixel leaves."""
    values_px = disparity_px.astype(np.float64)  # thousandths of a pixel are differences of squares: 32 bits lose them
    down, across = np.mgrid[: values_px.shape[0], : values_px.shape[1]].astype(np.float64)

    def covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return _mean(one * other, _PLANE_SIDE_PX) - _mean(one, _PLANE_SIDE_PX) * _mean(other, _PLANE_SIDE_PX)

    unexplained = covariance(values_px, values_px)
    for axis in (down, across):  # rows and columns of a square do not covary
        unexplained -= covariance(axis, values_px) ** 2 / np.maximum(covariance(axis, axis), 1e-6)
    return np.sqrt(np.maximum(unexplained, 0)).astype(np.float32)


def _size_of_about(width: int, height: int, about_px: int) -> tuple[int, int]:
    """Return width and height, divided by the whole number that makes the width about that many px."""
    factor = max(1, round(width / about_px))
    return max(1, width // factor), max(1, height // factor)


def warp(
    view: Real[np.ndarray, "H W *channels"], disparity_px: Float32[np.ndarray, "H W"]
) -> Real[np.ndarray, "H W *channels"]:
    """Return the right view warped to the left one: its pixel (x - d, y) moves to (x, y)."""
    columns, rows = _grid(*disparity_px.shape)
    return np.asarray(cv2.remap(view, columns - disparity_px, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


@functools.lru_cache(maxsize=8)
def _grid(height: int, width: int) -> tuple[Float32[np.ndarray, " W"], Float32[np.ndarray, "H W"]]:
    """Return the column of each pixel of a row, and the row of each pixel."""
    rows = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
    rows.flags.writeable = False
    return np.arange(width, dtype=np.float32), rows


def _mean(values: np.ndarray, side_px: int) -> np.ndarray:
    """At each pixel the mean over the square around it."""
    return np.asarray(cv2.blur(values, (side_px, side_px)))
