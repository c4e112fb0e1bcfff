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
    FirstMatch,
    SmoothMatch,
    TwoMatches,
    add_smooth_match,
    first_match,
    for_each_pair,
    smooth_match,
)
from foundation_stereo_depth.stereo.sgbm import Search, find_search
from foundation_stereo_depth.stereo.subpixel import RefinedDisparity, refine_flat_surfaces

COARSE_TO_FINE_MODEL = "fused"
"""The networks that work in this way."""

_LEAST_WIDTH_PX, _LEAST_HEIGHT_PX = 160, 32  # of the smallest size
_MATCHING_THREADS = 2
_SEES_WALLS_UP_TO_PX = 480  # width
_WALL_WIDTH_PX, _WALL_SIDE_PX, _WALL_DIFFERS_PX = 320, 15, 2.0  # the others at that width
_WALL_DEVIATION_RATIO, _WALL_SHARE = 2.0, 0.6  # deviations of coarse and fine; share of the window
_SMALL_DEVIATION = 0.87  # of images up to that width; the network's scale is fitted at 640x480

Run = Callable[[UInt8[np.ndarray, "B 2 H W 3"], Float32[np.ndarray, "B planes H W"] | None], NetworkOutput]
"""Predicts at any size from pairs and their prior; None stands for the prior of one size alone."""


def predict_coarse_to_fine(
    run: Run,
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    sigma_scale: float,
    *,
    disparity_scale: float = 1.0,
    only_size: bool = False,
) -> tuple[Float32[np.ndarray, "B H W"], Float32[np.ndarray, "B H W"]]:
    """Return disparity and its standard deviation, after predictions at half of the size, a quarter, ..., 160 px wide.

    The disparity of each size is refined on flat surfaces (`stereo.subpixel`).

    Args:
        run: the network.
        pairs: left and right RGB bytes.
        sigma_scale: a factor on the standard deviation that the network predicts.
        disparity_scale: a factor on the disparity of the result.
        only_size: the network takes no other size, so that it predicts this one alone, less accurately.
    """
    sizes = [pairs]
    while not only_size and _can_be_halved(sizes[0]):
        sizes.insert(0, _halved(sizes[0]))
    if len(sizes) == 1:
        disparity_px, log_variance = run(pairs, None)
        refined = _refined(pairs, disparity_px)
        sigma_px = _sigma_of(refined, log_variance, sigma_scale * disparity_scale)
        return _disparity_of(refined) * np.float32(disparity_scale), sigma_px
    searches = for_each_pair(find_search, pairs[:, 0], pairs[:, 1])
    # What larger sizes match needs no prediction: it is computed beside those of the smaller sizes.
    with ThreadPoolExecutor(_MATCHING_THREADS) as pool:
        # A smooth match of the smallest size would be as biased on walls as the first match is.
        smooth = pool.submit(for_each_pair, smooth_match, sizes[1][:, 0], sizes[1][:, 1], searches)
        first: Future[list[FirstMatch]] | None = None
        matching: list[Future[list[TwoMatches]]] = []
        for each in sizes[1:]:
            half = first if each.shape[3] > _SEES_WALLS_UP_TO_PX else None
            first = pool.submit(_first_matches, each, searches, half)
            matching.append(pool.submit(_add_smooth, first, smooth))
        smallest = for_each_pair(add_smooth_match, _first_matches(sizes[0], searches, None), smooth.result())
        disparity_px, log_variance = run(sizes[0], _complete(smallest, [None] * len(pairs)))
        refined = _refined(sizes[0], disparity_px)
        disparity_px = _disparity_of(refined)
        for each, matches in zip(sizes[1:], matching, strict=True):
            sigma_px = sigma_with_rig(log_variance, disparity_px.shape[2], sigma_scale)
            coarse = [
                CoarsePrediction(_enlarged(one_px, each), _enlarged(one_sigma_px, each))
                for one_px, one_sigma_px in zip(disparity_px, sigma_px, strict=True)
            ]
            fine_px, fine_log_variance = run(each, _complete(matches.result(), coarse))
            refined = _refined(each, fine_px)
            fine = _disparity_of(refined), fine_log_variance
            if each.shape[3] > _SEES_WALLS_UP_TO_PX:
                fine = _with_walls_of(disparity_px, log_variance, *fine, each)
            disparity_px, log_variance = fine
    sigma_px = _sigma_of(refined, log_variance, sigma_scale * disparity_scale)
    return disparity_px * np.float32(disparity_scale), sigma_px


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


def _first_matches(
    pairs: UInt8[np.ndarray, "B 2 H W 3"], searches: Sequence[Search], half: Future[list[FirstMatch]] | None
) -> list[FirstMatch]:
    """Return the first matches of pairs.

    Args:
        pairs: left and right RGB bytes.
        searches: of the pairs.
        half: matches at half of the size, for textureless surfaces.
    """
    halves = [None] * len(pairs) if half is None else half.result()
    return for_each_pair(first_match, pairs[:, 0], pairs[:, 1], searches, halves)


def _add_smooth(first: Future[list[FirstMatch]], smooth: Future[list[SmoothMatch]]) -> list[TwoMatches]:
    """Return both matches of pairs."""
    return for_each_pair(add_smooth_match, first.result(), smooth.result())


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
    pairs: UInt8[np.ndarray, "B 2 H W 3"], disparity_px: Float32[np.ndarray, "B H W"]
) -> list[RefinedDisparity]:
    return [
        refine_flat_surfaces(left, right, one_px) for (left, right), one_px in zip(pairs, disparity_px, strict=True)
    ]


def _disparity_of(refined: Sequence[RefinedDisparity]) -> Float32[np.ndarray, "B H W"]:
    return np.stack([one.disparity_px for one in refined])


def _sigma_of(
    refined: Sequence[RefinedDisparity], log_variance: Float32[np.ndarray, "B H W"], sigma_scale: float
) -> Float32[np.ndarray, "B H W"]:
    """Return the standard deviation of the error of refined disparities, px."""
    width = log_variance.shape[2]
    before_px = sigma_with_rig(log_variance, width, sigma_scale)
    if width <= _SEES_WALLS_UP_TO_PX:
        before_px *= np.float32(_SMALL_DEVIATION)
    return np.stack([one.sigma_px(one_px) for one, one_px in zip(refined, before_px, strict=True)])


def _halved(pairs: UInt8[np.ndarray, "B 2 H W 3"]) -> UInt8[np.ndarray, "B 2 h w 3"]:
    height, width = pairs.shape[2] // 2, pairs.shape[3] // 2
    halved = np.empty((*pairs.shape[:2], height, width, 3), np.uint8)
    for small, view in zip(halved.reshape(-1, height, width, 3), pairs.reshape(-1, *pairs.shape[2:]), strict=True):
        small[:] = resize_image(view, height, width)
    return halved
