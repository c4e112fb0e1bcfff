"""Confidence: the standard deviation of an error, and the probability of a small one."""

import math

import numpy as np
from jaxtyping import Float32

DISTRIBUTION_NAMES = ("gaussian", "laplace")
"""Of errors; `uncertainty.DISTRIBUTIONS` has the same for tensors."""

RIG_SIGMA_PX = 0.15
"""Standard deviation, px of the network's size up to `RIG_WIDTH_PX`, that a network trained on perfect pairs cannot
predict: real cameras are never rectified, focused and calibrated perfectly. Without it, 40 % of real errors instead of
68 % lay within one sigma in the most certain eighth of the guided network's pixels (docs/experiments/accuracy.md)."""
RIG_WIDTH_PX = 320
"""The width at which it was measured. The errors of a rig are angles, so they have more pixels in wider images."""


def sigma_with_rig(
    log_variance: Float32[np.ndarray, "*shape"], width: int, scale: float
) -> Float32[np.ndarray, "*shape"]:
    """Return the standard deviation of the error, px: the network's own, and a real rig's.

    Args:
        log_variance: predicted by the network, natural logarithm of px^2.
        width: of the images at which it was predicted, px.
        scale: a factor on the network's own standard deviation.
    """
    rig_px = RIG_SIGMA_PX * max(1.0, width / RIG_WIDTH_PX)
    return np.sqrt(np.exp(log_variance) * np.float32(scale**2) + np.float32(rig_px**2))


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
