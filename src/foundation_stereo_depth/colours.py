"""Maps in colours, the same everywhere: near is warm, far is cold; unknown is black, uncertain grey."""

import functools
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from foundation_stereo_depth.stereo.match import StereoMatch

Bgr = tuple[int, int, int]
Canvas = UInt8[np.ndarray, "_ _ 3"]

MASKED: Bgr = (70, 70, 70)
"""The grey of pixels whose confidence is too low."""
_ENDS_PERCENT = (2, 98)
_FEWEST_CONFIDENT = 0.01
"""With a smaller fraction of confident pixels, the range is that of all pixels."""
_MARGIN = 0.03
_NARROWEST = 0.1
"""The smallest range, m or px: noise of a plane is not spread over all colours."""


@dataclass(frozen=True, kw_only=True)
class ColourScale:
    """The range and the colour map of an image.

    Attributes:
        low, high: the ends of the range.
        unit: of both.
        colour_map: OpenCV's, such as COLORMAP_TURBO or COLORMAP_VIRIDIS.
        reverse: the first colour is at the high end, so that near surfaces are red in depth as in disparity.
    """

    low: float
    high: float
    unit: str
    colour_map: int = cv2.COLORMAP_TURBO
    reverse: bool = False


def colour_map_of(name: str) -> int:
    """Return OpenCV's number of a colour map, one of `options.inference.COLOUR_MAPS`."""
    number: int = getattr(cv2, f"COLORMAP_{name.upper()}")
    return number


def find_uncertain(match: StereoMatch, min_confidence: float) -> Bool[np.ndarray, "H W"]:
    """Return where confidence is lower than this; of a matcher without confidence, where it is not valid."""
    return ~match.valid if match.confidence is None else match.confidence < min_confidence


def fit_range(values: Float[np.ndarray, "H W"], uncertain: Bool[np.ndarray, "H W"]) -> tuple[float, float] | None:
    """Return the 2nd and 98th percentile of the confident values, with a small margin; None where none is known.

    >>> values = np.array([[1.0, 2.0, 3.0, 900.0]])
    >>> low, high = fit_range(values, np.array([[False, False, False, True]]))
    >>> round(low, 2), round(high, 2)
    (0.98, 3.02)
    """
    known = np.isfinite(values)
    confident = known & ~uncertain
    chosen = values[confident if confident.sum() > _FEWEST_CONFIDENT * values.size else known]
    if chosen.size == 0:
        return None
    low, high = (float(end) for end in np.percentile(chosen, _ENDS_PERCENT))
    margin = max(_MARGIN * (high - low), (_NARROWEST - (high - low)) / 2)
    return max(0.0, low - margin), high + margin


def apply_colours(
    values: Float[np.ndarray, "h w"],
    scale: ColourScale,
    height: int,
    width: int,
    hidden: Bool[np.ndarray, "h w"] | None,
) -> Canvas:
    """Return a map in colours, BGR, resized; black where it is NaN, grey where `hidden`."""
    unknown = np.isnan(values)
    scaled = (values - np.float32(scale.low)) * np.float32(255 / (scale.high - scale.low))
    scaled[unknown] = 0
    level = np.clip(scaled, 0, 255).astype(np.uint8)
    if scale.reverse:
        level = 255 - level
    image = np.asarray(cv2.applyColorMap(level, lookup_table(scale.colour_map)), np.uint8)
    image[unknown] = 0
    if hidden is not None:
        image[hidden & ~unknown] = MASKED
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


@functools.cache
def lookup_table(number: int) -> UInt8[np.ndarray, "256 1 3"]:
    """Return BGR of each level; from a number OpenCV computes it at each call, in three times the time of the map."""
    return np.asarray(cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number), np.uint8)
