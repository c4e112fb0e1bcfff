"""Predict small images first, and let the network refine the answer at each larger size.

What a network cannot tell at one size, a textureless wall or a repeated pattern, it may well tell at half of that size,
where it sees twice as far. It refines edges of the small answer by the match at the larger size.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from foundation_stereo_depth.data.sample import resize_image
from foundation_stereo_depth.inference.backends import NetworkOutput
from foundation_stereo_depth.stereo.confidence import sigma_with_rig
from foundation_stereo_depth.stereo.prior import (
    CoarsePrediction,
    SmoothMatch,
    TwoMatches,
    add_smooth_match,
    first_match,
    for_each_pair,
    smooth_match,
)
from foundation_stereo_depth.stereo.sgbm import Search, find_search
from foundation_stereo_depth.stereo.subpixel import refine_flat_surfaces

COARSE_TO_FINE_MODEL = "fused"
"""The networks that work in this way."""

_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX = 160, 32  # of the smallest size
_MATCHING_THREADS = 2
_SEES_WALLS_UP_TO_PX = 480  # width
_WALL_WIDTH_PX, _WALL_SIDE_PX, _WALL_DIFFERS_PX = 320, 15, 2.0  # the others at that width
_WALL_DEVIATION_RATIO, _WALL_SHARE = 2.0, 0.6  # deviations of coarse and fine; share of the window

Run = Callable[[UInt8[np.ndarray, "B 2 H W 3"], Float32[np.ndarray, "B planes H W"] | None], NetworkOutput]
"""Predicts at any size from pairs and their prior; None stands for the prior of one size alone."""


def predict_coarse_to_fine(
    run: Run,
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    sigma_scale: float,
    *,
    only_size: bool = False,
) -> NetworkOutput:
    """Return the prediction, after those at half of the size, at a quarter, and so on, down to 160 px of width.

    The disparity of each size is refined on flat surfaces (`stereo.subpixel`).

    Args:
        run: the network.
        pairs: left and right RGB bytes.
        sigma_scale: a factor on the standard deviation that the network predicts.
        only_size: the network takes no other size, so that it predicts this one alone, less accurately.
    """
    sizes = [pairs]
    while not only_size and _can_be_halved(sizes[0]):
        sizes.insert(0, _halved(sizes[0]))
    if len(sizes) == 1:
        return _refined(pairs, *run(pairs, None))
    searches = for_each_pair(find_search, pairs[:, 0], pairs[:, 1])
    # What larger sizes match needs no prediction: it is computed beside those of the smaller sizes.
    with ThreadPoolExecutor(_MATCHING_THREADS) as pool:
        # A smooth match of the smallest size would be as biased on walls as the first match is.
        smooth = pool.submit(for_each_pair, smooth_match, sizes[1][:, 0], sizes[1][:, 1], searches)
        matching = [pool.submit(_match_twice, each, searches, smooth) for each in sizes[1:]]
        prior = _complete(_match_twice(sizes[0], searches, smooth), [None] * len(pairs))
        disparity_px, log_variance = _refined(sizes[0], *run(sizes[0], prior))
        for each, matches in zip(sizes[1:], matching, strict=True):
            sigma_px = sigma_with_rig(log_variance, disparity_px.shape[2], sigma_scale)
            coarse = [
                CoarsePrediction(_enlarged(one_px, each), _enlarged(one_sigma_px, each))
                for one_px, one_sigma_px in zip(disparity_px, sigma_px, strict=True)
            ]
            fine = _refined(each, *run(each, _complete(matches.result(), coarse)))
            if each.shape[3] > _SEES_WALLS_UP_TO_PX:
                fine = _with_walls_of(disparity_px, log_variance, *fine, each)
            disparity_px, log_variance = fine
    return disparity_px, log_variance


def _with_walls_of(
    coarse_px: Float32[np.ndarray, "B h w"],
    coarse_log_variance: Float32[np.ndarray, "B h w"],
    disparity_px: Float32[np.ndarray, "B H W"],
    log_variance: Float32[np.ndarray, "B H W"],
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
) -> NetworkOutput:
    """Return a prediction with the coarse one where most around a pixel differs from it, and is not much surer.

    So it is on textureless walls, of which the network sees less at the larger size. Edges and thin things differ too,
    but not over a whole window.
    """
    coarse_px, coarse_sigma_px = (
        np.stack([_enlarged(one, pairs) for one in values]) for values in (coarse_px, np.exp(coarse_log_variance / 2))
    )
    coarse_log_variance = 2 * np.log(coarse_sigma_px)
    scale = pairs.shape[3] / _WALL_WIDTH_PX
    side = int(_WALL_SIDE_PX * scale) | 1
    differs = np.abs(disparity_px - coarse_px) > _WALL_DIFFERS_PX * scale
    differs &= coarse_log_variance < log_variance + 2 * math.log(_WALL_DEVIATION_RATIO)
    around = np.stack([cv2.blur(one.astype(np.float32), (side, side)) for one in differs])
    is_wall = differs & (around > _WALL_SHARE)
    return np.where(is_wall, coarse_px, disparity_px), np.where(is_wall, coarse_log_variance, log_variance)


def _match_twice(
    pairs: UInt8[np.ndarray, "B 2 H W 3"], searches: Sequence[Search], smooth: Future[list[SmoothMatch]]
) -> list[TwoMatches]:
    first = for_each_pair(first_match, pairs[:, 0], pairs[:, 1], searches)
    return for_each_pair(add_smooth_match, first, smooth.result())


def _complete(
    matches: Sequence[TwoMatches], coarse: Sequence[CoarsePrediction | None]
) -> Float32[np.ndarray, "B planes H W"]:
    """Return the priors of pairs."""
    priors = for_each_pair(TwoMatches.complete, matches, coarse)
    return priors[0][None] if len(priors) == 1 else np.stack(priors)


def _can_be_halved(pairs: UInt8[np.ndarray, "B 2 H W 3"]) -> bool:
    return pairs.shape[3] // 2 >= _LEAST_WIDTH_PX and pairs.shape[2] // 2 >= _LEAST_HEIGHT_PX


def _enlarged(
    values_px: Float32[np.ndarray, "h w"], pairs: UInt8[np.ndarray, "B 2 H W 3"]
) -> Float32[np.ndarray, "H W"]:
    """Return values in px at the size of the pairs, in px of it."""
    height, width = pairs.shape[2:4]
    enlarged = np.asarray(cv2.resize(values_px, (width, height), interpolation=cv2.INTER_LINEAR))
    return enlarged * np.float32(width / values_px.shape[1])


def _refined(
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    disparity_px: Float32[np.ndarray, "B H W"],
    log_variance: Float32[np.ndarray, "B H W"],
) -> NetworkOutput:
    """Return a prediction, its disparity refined on flat surfaces."""
    refined_px = [
        refine_flat_surfaces(left, right, one_px).disparity_px
        for (left, right), one_px in zip(pairs, disparity_px, strict=True)
    ]
    return np.stack(refined_px), log_variance


def _halved(pairs: UInt8[np.ndarray, "B 2 H W 3"]) -> UInt8[np.ndarray, "B 2 h w 3"]:
    height, width = pairs.shape[2] // 2, pairs.shape[3] // 2
    halved = np.empty((*pairs.shape[:2], height, width, 3), np.uint8)
    for small, view in zip(halved.reshape(-1, height, width, 3), pairs.reshape(-1, *pairs.shape[2:]), strict=True):
        small[:] = resize_image(view, height, width)
    return halved
