"""The priors of networks: by how many planes a network takes, the function that computes them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.stereo.sgbm import (
    PRIOR_PLANES,
    TWO_PRIOR_PLANES,
    CoarsePrediction,
    SmoothMatch,
    prior_planes,
    smooth_match,
    two_prior_planes,
)

_THREADS = 16
PRIORS = {PRIOR_PLANES: prior_planes, TWO_PRIOR_PLANES: two_prior_planes}
"""The functions that compute priors, by their number of planes."""

Result = TypeVar("Result")


def priors_of(pairs: UInt8[np.ndarray, "B 2 H W 3"], planes: int = PRIOR_PLANES) -> Float[np.ndarray, "B planes H W"]:
    """Return the prior of so many planes for each pair of RGB views."""
    return np.stack(_each(PRIORS[planes], pairs))


def smooth_matches(pairs: UInt8[np.ndarray, "B 2 H W 3"]) -> list[SmoothMatch]:
    """Return the match by large penalties of each pair of RGB views."""
    return _each(smooth_match, pairs)


def two_priors_of(
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    smooth: Sequence[SmoothMatch],
    coarse: Sequence[CoarsePrediction] | None,
) -> Float[np.ndarray, "B 16 H W"]:
    """Return `two_prior_planes` for each pair of RGB views, its smooth match and its coarse prediction, if any."""
    return np.stack(_each(two_prior_planes, pairs, smooth, coarse or [None] * len(pairs)))


def _each(
    function: Callable[..., Result], pairs: UInt8[np.ndarray, "B 2 H W 3"], *others: Sequence[Any]
) -> list[Result]:
    """Return the function's result for each pair; threads, since OpenCV releases Python's lock."""
    arguments = (pairs[:, 0], pairs[:, 1], *others)
    if len(pairs) == 1:
        return [function(*(each[0] for each in arguments))]
    with ThreadPoolExecutor(min(len(pairs), _THREADS)) as pool:
        return list(pool.map(function, *arguments))
