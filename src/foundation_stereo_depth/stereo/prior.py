"""The priors of networks: by how many planes a network takes, the function that computes them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, UInt8

from foundation_stereo_depth.stereo.sgbm import PRIOR_PLANES, TWO_PRIOR_PLANES, prior_planes, two_prior_planes

_THREADS = 16
PRIORS = {PRIOR_PLANES: prior_planes, TWO_PRIOR_PLANES: two_prior_planes}
"""The functions that compute priors, by their number of planes."""


def priors_of(pairs: UInt8[np.ndarray, "B 2 H W 3"], planes: int = PRIOR_PLANES) -> Float[np.ndarray, "B planes H W"]:
    """Return the prior of so many planes for each pair of RGB views; threads, since OpenCV releases Python's lock."""
    prior = PRIORS[planes]
    if len(pairs) == 1:
        return prior(*pairs[0])[None]
    with ThreadPoolExecutor(min(len(pairs), _THREADS)) as pool:
        return np.stack(list(pool.map(prior, pairs[:, 0], pairs[:, 1])))
