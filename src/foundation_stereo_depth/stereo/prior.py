"""The priors of networks: by how many planes a network takes, the function that computes them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.stereo.sgbm import (
    PRIOR_PLANES,
    TWO_PRIOR_PLANES,
    CoarsePrediction,
    Search,
    SmoothMatch,
    find_search,
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


class SharedMatch(NamedTuple):
    """What the priors of one pair at several sizes share.

    Attributes:
        search: where to look for matches.
        smooth: the match by large penalties.
    """

    search: Search
    smooth: SmoothMatch


def shared_matches(pairs: UInt8[np.ndarray, "B 2 H W 3"], smaller: UInt8[np.ndarray, "B 2 h w 3"]) -> list[SharedMatch]:
    """Return what the priors of each pair share: the search of the pairs, the smooth match of the smaller ones."""
    searches = _each(find_search, pairs)
    return [SharedMatch(*both) for both in zip(searches, _each(smooth_match, smaller, searches), strict=True)]


def two_priors_of(
    pairs: UInt8[np.ndarray, "B 2 H W 3"],
    shared: Sequence[SharedMatch],
    coarse: Sequence[CoarsePrediction] | None,
) -> Float[np.ndarray, "B 16 H W"]:
    """Return `two_prior_planes` for each pair of RGB views, what its sizes share and its coarse prediction, if any."""
    searches, smooth = zip(*shared, strict=True)
    return np.stack(_each(two_prior_planes, pairs, smooth, coarse or [None] * len(pairs), searches))


def _each(
    function: Callable[..., Result], pairs: UInt8[np.ndarray, "B 2 H W 3"], *others: Sequence[Any]
) -> list[Result]:
    """Return the function's result for each pair; threads, since OpenCV releases Python's lock."""
    arguments = (pairs[:, 0], pairs[:, 1], *others)
    if len(pairs) == 1:
        return [function(*(each[0] for each in arguments))]
    with ThreadPoolExecutor(min(len(pairs), _THREADS)) as pool:
        return list(pool.map(function, *arguments))
