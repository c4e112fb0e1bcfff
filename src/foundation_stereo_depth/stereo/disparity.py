"""Rules of disparity maps, each in its only home: what is valid, and what resizing does to the values.

A disparity is left-referenced and positive, in pixels of the map it is stored in: the scene point at column x of the
left view stands at column x - d of the right one. Unknown is NaN in files and in arrays, a mask in arithmetic.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, Shaped

ArrayOrTensor = TypeVar("ArrayOrTensor", bound=Any)


def valid_mask(disparity_px: ArrayOrTensor, maximum_px: float = math.inf) -> ArrayOrTensor:
    """Return True where the disparity is known: finite, above 0 and below `maximum_px`.

    Takes NumPy arrays and tensors; NaN compares false with everything and so is never valid.
    """
    return (disparity_px > 0) & (disparity_px < maximum_px)


def nearest_indices(source: int, target: int) -> Int[np.ndarray, " target"]:
    """Return for each of `target` cells the index of the source pixel that contains the cell's centre.

    Cell i covers source coordinates [i, i + 1) * source / target; its centre lies in pixel floor((i + 0.5) * source /
    target). Area averaging of the images is centred on the same point, so that images and disparity stay aligned.
    """
    # Whole-number arithmetic: floor((2 i + 1) source / (2 target)) has no rounding to get wrong.
    return (2 * np.arange(target) + 1) * source // (2 * target)


def resize_disparity(
    stored: Shaped[np.ndarray, "H W *digits"],
    height: int,
    width: int,
    decode: Callable[[np.ndarray], np.ndarray] = lambda disparity_px: disparity_px,
) -> Float[np.ndarray, "h w"]:
    """Return the map at another size, in px of that size: nearest sample, value times the ratio of the widths.

    Disparity is horizontal, so the height ratio never touches the value. No two samples are mixed: an average of
    foreground and background would be a surface that is not there.

    Args:
        stored: the map in px, or encoded as in its file.
        height: of the result.
        width: of the result.
        decode: converts stored values to px of the stored size; only the sampled pixels are decoded.
    """
    return decode(nearest_samples(stored, height, width)) * np.float32(width / stored.shape[1])


def nearest_samples(values: Shaped[np.ndarray, "H W *_"], height: int, width: int) -> Shaped[np.ndarray, "h w *_"]:
    """Return the map at another size by nearest samples, its values unchanged: for what is not in px."""
    if values.shape[:2] == (height, width):
        return values
    rows, columns = (nearest_indices(*sizes) for sizes in zip(values.shape[:2], (height, width), strict=True))
    # Whole rows first: a third of the time that picking rows and columns at once takes.
    return values[rows].take(columns, axis=1)
