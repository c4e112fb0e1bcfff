"""Confidence: the probability of a small error, from its standard deviation and distribution."""

import math

import numpy as np
from jaxtyping import Float32

DISTRIBUTION_NAMES = ("gaussian", "laplace")
"""Of errors; `uncertainty.DISTRIBUTIONS` has the same for tensors."""


def probability_within(
    threshold_px: float, sigma_px: Float32[np.ndarray, "*shape"], distribution: str
) -> Float32[np.ndarray, "*shape"]:
    """Return P(|error| < threshold), 0 to 1, of an error with this standard deviation and distribution.

    Laplace: 1 - exp(-t / b) with b = sigma / sqrt 2. Gaussian: erf(t / (sigma sqrt 2)).
    """
    if distribution == "laplace":
        return -np.expm1(np.float32(-threshold_px * math.sqrt(2)) / sigma_px)
    from scipy.special import erf  # noqa: PLC0415 (seldom needed, and slow to import)

    return erf(np.float32(threshold_px / math.sqrt(2)) / sigma_px)
