"""What a stereo matcher returns, whichever it is: a network behind `Predictor`, or semi-global matching."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from foundation_stereo_depth.stereo.geometry import StereoCalibration, depth_from_disparity

CONFIDENT_WITHIN_PX = 1.0
"""Confidence is P(|error| < this), in px of the map that it belongs to."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class StereoMatch:
    """The disparity of the left view of a rectified pair, at the size of that view.

    Attributes:
        disparity_px: [H, W]; NaN where nothing is known.
        valid: [H, W]; where the matcher computed the disparity itself rather than filled it in.
        sigma_px: [H, W], standard deviation of the error; None for a matcher that predicts none.
        confidence: [H, W], P(|error| < 1 px), 0 to 1; None for a matcher that predicts none.
    """

    disparity_px: Float32[np.ndarray, "H W"]
    valid: Bool[np.ndarray, "H W"]
    sigma_px: Float32[np.ndarray, "H W"] | None = None
    confidence: Float32[np.ndarray, "H W"] | None = None

    def __repr__(self) -> str:
        """Return size and range rather than all numbers."""
        height, width = self.disparity_px.shape
        known_px = self.disparity_px[np.isfinite(self.disparity_px)]
        found = f"disparity {known_px.min():.1f} to {known_px.max():.1f} px" if known_px.size else "no disparity"
        return f"<{type(self).__name__} {width}x{height}, {found}>"

    def depth_m(self, calibration: StereoCalibration) -> Float32[np.ndarray, "H W"]:
        """Return the depth along the optical axis in metres; NaN where the disparity is unknown.

        Args:
            calibration: of the rectified pair, at any size of the same aspect; it is scaled to the size of the map.

        Raises:
            CalibrationError: it has another aspect.
        """
        return depth_from_disparity(self.disparity_px, calibration.scaled_to(*self.disparity_px.shape))


StereoMatcher = Callable[[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]], StereoMatch]
"""Left and right view, rectified, RGB -> match."""
