"""A real stereo pair that is installed with scikit-image, so that a first try needs neither cameras nor a network."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from foundation_stereo_depth.stereo.geometry import StereoCalibration


class DemoPair(NamedTuple):
    """A rectified pair, RGB, with its calibration."""

    name: str
    left: UInt8[np.ndarray, "H W 3"]
    right: UInt8[np.ndarray, "H W 3"]
    calibration: StereoCalibration


def read_demo_pair() -> DemoPair:
    """Return Middlebury's Motorcycle (Scharstein et al., 2014) at a quarter of its size, as scikit-image ships it."""
    import skimage.data  # noqa: PLC0415 (half a second, which other users of this package do not need)

    left, right, _ = skimage.data.stereo_motorcycle()
    height, width = left.shape[:2]
    # From the documentation of stereo_motorcycle.
    focal_px, cx_left_px, cy_px, doffs_px, baseline_m = 994.978, 311.193, 254.877, 31.086, 0.193001
    calibration = StereoCalibration(
        width=width,
        height=height,
        focal_px=focal_px,
        focal_y_px=focal_px,
        cx_left_px=cx_left_px,
        cx_right_px=cx_left_px + doffs_px,
        cy_px=cy_px,
        baseline_m=baseline_m,
    )
    return DemoPair("Middlebury's Motorcycle, left view", left, right, calibration)
