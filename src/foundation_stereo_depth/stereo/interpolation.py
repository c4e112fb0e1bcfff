"""Edge-aware interpolation of a disparity from where it is known well.

NumPy, OpenCV and LAPACK only.
"""

import functools
import importlib
import importlib.util
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

_WLS_LAMBDA = 40.0
_WLS_SIGMA = 4.0  # levels of 256 between neighbours that reduce the smoothness to 1/e


def interpolate(
    disparity_px: Float32[np.ndarray, "H W"],
    support: Float32[np.ndarray, "H W"],
    grey: UInt8[np.ndarray, "H W"],
    factor: int,
) -> tuple[Float32[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
    """Return an edge-aware interpolation of the disparity where it has support, and the support of each pixel of it.

    Weighted least squares along rows, then along columns (Min et al., "Fast global image smoothing based on weighted
    least squares", TIP 2014), of disparity times support and of support, then divided. Between two supported borders
    the result goes from one to the other. A second pass changes nothing that can be measured.

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
