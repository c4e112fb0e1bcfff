"""Predict small images first, and let the network refine the answer at each larger size.

What a network cannot tell at one size, a textureless wall or a repeated pattern, it may well tell at half of that size,
where it sees twice as far. It refines edges of the small answer by the match at the larger size.
"""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.inference.backends import NetworkOutput
from foundation_stereo_depth.stereo.prior import refining_priors_of
from foundation_stereo_depth.stereo.subpixel import refine_flat_surfaces

COARSE_TO_FINE_MODEL = "fused"
"""The networks that work in this way."""

_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX = 160, 32  # of the smallest size

Run = Callable[[UInt8[np.ndarray, "B 2 H W 3"], Float32[np.ndarray, "B planes H W"] | None], NetworkOutput]
"""Predicts at any size from pairs and their prior; None stands for the prior of one size alone."""


def predict_coarse_to_fine(
    run: Run,
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    sigma_of: Callable[[np.ndarray, int], np.ndarray],
    *,
    only_size: bool = False,
) -> NetworkOutput:
    """Return the prediction, after one at half the size if that is large enough, and so on.

    The disparity of each size is refined on flat surfaces (`stereo.subpixel`).

    Args:
        run: the network.
        pairs: left and right RGB bytes.
        sigma_of: returns the standard deviation, px, of a log-variance that was predicted at the given width.
        only_size: the network takes no other size, so that it predicts this one alone, less accurately.
    """
    height, width = pairs.shape[2:4]
    has_smaller = not only_size and width // 2 >= _LEAST_WIDTH_PX and height // 2 >= _LEAST_HEIGHT_PX
    prior = prior_by_half_the_size(run, pairs, sigma_of) if has_smaller else None
    disparities_px, log_variances = run(pairs, prior)
    refined_px = [
        refine_flat_surfaces(left, right, disparity_px).disparity_px
        for (left, right), disparity_px in zip(pairs, disparities_px, strict=True)
    ]
    return np.stack(refined_px), log_variances


def prior_by_half_the_size(
    run: Run, pairs: UInt8[np.ndarray, "B 2 H W 3"], sigma_of: Callable[[np.ndarray, int], np.ndarray]
) -> Float32[np.ndarray, "B planes H W"]:
    """Return the prior of a network that is to refine what it predicts at half the size; arguments as above."""
    height, width = pairs.shape[2:4]
    halved = _halved(pairs)
    small_px, small_log_variance = predict_coarse_to_fine(run, halved, sigma_of)
    factor = np.float32(width / halved.shape[3])

    def enlarge(values: np.ndarray) -> np.ndarray:
        return np.stack([cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in values]) * factor

    return refining_priors_of(pairs, enlarge(small_px), enlarge(sigma_of(small_log_variance, halved.shape[3])))


def _halved(pairs: UInt8[np.ndarray, "B 2 H W 3"]) -> UInt8[np.ndarray, "B 2 h w 3"]:
    height, width = pairs.shape[2] // 2, pairs.shape[3] // 2
    halved = np.empty((*pairs.shape[:2], height, width, 3), np.uint8)
    for small, view in zip(halved.reshape(-1, height, width, 3), pairs.reshape(-1, *pairs.shape[2:]), strict=True):
        small[:] = resize_image(view, height, width)
    return halved
