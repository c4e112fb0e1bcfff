"""The priors of networks: by how many planes a network takes, the function that computes them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Float32, UInt8

from foundation_stereo_depth.stereo.sgbm import (
    PRIOR_PLANES,
    TWO_PRIOR_PLANES,
    prior_planes,
    refining_prior_planes,
    two_prior_planes,
)

_THREADS = 16
PRIORS = {PRIOR_PLANES: prior_planes, TWO_PRIOR_PLANES: two_prior_planes}
"""The functions that compute priors, by their number of planes."""


def priors_of(pairs: UInt8[np.ndarray, "B 2 H W 3"], planes: int = PRIOR_PLANES) -> Float[np.ndarray, "B planes H W"]:
    """Return the prior of so many planes for each pair of RGB views."""
    return _stack(PRIORS[planes], (pairs[:, 0], pairs[:, 1]))


def refining_priors_of(
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    coarse_px: Float32[np.ndarray, "B H W"],
    coarse_sigma_px: Float32[np.ndarray, "B H W"],
) -> Float32[np.ndarray, "B 16 H W"]:
    """Return `refining_prior_planes` of each pair of RGB views."""
    return _stack(refining_prior_planes, (pairs[:, 0], pairs[:, 1], coarse_px, coarse_sigma_px))


def _stack(prior: Callable[..., np.ndarray], arguments: Sequence[np.ndarray]) -> np.ndarray:
    """Return the prior of each pair; threads, since OpenCV releases Python's lock."""
    count = len(arguments[0])
    if count == 1:
        return prior(*(each[0] for each in arguments))[None]
    with ThreadPoolExecutor(min(count, _THREADS)) as pool:
        return np.stack(list(pool.map(prior, *arguments)))
