"""Disparity <-> depth of a rectified pair: pure arithmetic, for numbers, NumPy arrays and tensors alike.

    Z = f B / (d - (cx_left - cx_right))        sigma_Z = Z^2 sigma_d / (f B)

with d the disparity, f the horizontal focal length and cx the columns of the principal points, all in px of one
image size, and B the baseline in metres.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float, UInt8

from foundation_stereo_depth.errors import CalibrationError, UserError

_ASPECT_TOLERANCE = 0.01

Numbers = TypeVar("Numbers", bound=Any)
"""A number, a NumPy array or a tensor; what comes back is of the same kind."""


@dataclass(frozen=True, kw_only=True)
class StereoCalibration:
    """The parameters of a rectified rig that depth follows from, at one image size.

    Attributes:
        width, height: size of the images that the rest refers to, px.
        focal_px: horizontal focal length, of both cameras.
        focal_y_px: vertical focal length; unequal where images were stretched.
        cx_left_px, cx_right_px: columns of the principal points; equal unless the cameras converge.
        cy_px: row of the principal points.
        baseline_m: distance of the cameras.
    """

    width: int
    height: int
    focal_px: float
    focal_y_px: float
    cx_left_px: float
    cx_right_px: float
    cy_px: float
    baseline_m: float

    def __post_init__(self) -> None:
        for name in ("width", "height", "focal_px", "focal_y_px", "baseline_m"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"a calibration's {name} is {value}, but has to be above 0 and finite")
        for name in ("cx_left_px", "cx_right_px", "cy_px"):
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"a calibration's {name} is {getattr(self, name)}, but has to be a finite number")

    @classmethod
    def centred(cls, *, height: int, width: int, focal_px: float, baseline_m: float) -> "StereoCalibration":
        """Return the calibration of a rig whose optical axes pass through the middle of its images."""
        return cls(
            width=width,
            height=height,
            focal_px=focal_px,
            focal_y_px=focal_px,
            cx_left_px=(width - 1) / 2,
            cx_right_px=(width - 1) / 2,
            cy_px=(height - 1) / 2,
            baseline_m=baseline_m,
        )

    @property
    def offset_px(self) -> float:
        """The disparity of a point at infinity, cx_left - cx_right."""
        return self.cx_left_px - self.cx_right_px

    @property
    def farthest_m(self) -> float:
        """The distance of a point whose disparity is 0; infinity where disparity 0 is infinitely far or beyond."""
        return math.inf if self.offset_px >= 0 else self.focal_px * self.baseline_m / -self.offset_px

    def scaled_to(self, height: int, width: int) -> "StereoCalibration":
        """Return the calibration for images of another size and the same aspect.

        Raises:
            CalibrationError: their aspect differs, so they are not this rig's.
        """
        check_aspect(height, width, self.height, self.width)
        return self.resized(height, width)

    def resized(self, height: int, width: int) -> "StereoCalibration":
        """Return the calibration for images stretched to another size: columns follow the width, rows the height.

        >>> rig = StereoCalibration(width=640, height=480, focal_px=500.0, focal_y_px=500.0, cx_left_px=320.0,
        ...     cx_right_px=310.0, cy_px=240.0, baseline_m=0.1)
        >>> small = rig.resized(120, 320)
        >>> small.focal_px, small.focal_y_px, small.offset_px
        (250.0, 125.0, 5.0)
        """
        across, down = width / self.width, height / self.height
        return dataclasses.replace(
            self,
            width=width,
            height=height,
            focal_px=self.focal_px * across,
            focal_y_px=self.focal_y_px * down,
            # Pixel i covers i - 1/2 to i + 1/2, so that a stretch keeps the image's edges where they are.
            cx_left_px=(self.cx_left_px + 0.5) * across - 0.5,
            cx_right_px=(self.cx_right_px + 0.5) * across - 0.5,
            cy_px=(self.cy_px + 0.5) * down - 0.5,
        )


def check_aspect(height: int, width: int, calibrated_height: int, calibrated_width: int) -> None:
    """Check that images have a calibration's size, px, or another with the same aspect.

    Raises:
        CalibrationError: their aspect differs, so the camera cropped them or the calibration is another camera's.
    """
    if abs(width / height * calibrated_height / calibrated_width - 1) > _ASPECT_TOLERANCE:
        raise CalibrationError(
            f"images of {width}x{height} do not fit a calibration made at {calibrated_width}x{calibrated_height}: the "
            "aspect differs, so one cannot be scaled to the other; use the calibrated size, or calibrate at this"
        )


def depth_from_disparity(disparity_px: Numbers, calibration: StereoCalibration) -> Numbers:
    """Return the depth along the optical axis in metres; NaN where the disparity is unknown, <= 0 or not finite.

    A point whose disparity is not above `offset_px` would lie at infinity or behind the rig: NaN too, never a far
    wall.
    """
    shift_px = disparity_px - calibration.offset_px
    known = (disparity_px > 0) & (disparity_px < math.inf) & (shift_px > 0)
    return calibration.focal_px * calibration.baseline_m / _nan_unless(known, shift_px)


def depth_std_from_disparity(disparity_px: Numbers, std_px: Numbers, calibration: StereoCalibration) -> Numbers:
    """Return the standard deviation of the depth in metres, to first order; NaN where the depth is NaN.

    Args:
        disparity_px: px of the calibration's size.
        std_px: its standard deviation.
        calibration: of the images whose px both are in.
    """
    depth_m = depth_from_disparity(disparity_px, calibration)
    return depth_m * depth_m * std_px / (calibration.focal_px * calibration.baseline_m)


def disparity_from_depth(depth_m: Numbers, calibration: StereoCalibration) -> Numbers:
    """Return the disparity in px of the calibration's size; NaN where the depth is unknown, <= 0 or not finite."""
    known = (depth_m > 0) & (depth_m < math.inf)
    shift_px: Any = calibration.focal_px * calibration.baseline_m / _nan_unless(known, depth_m)
    return shift_px + calibration.offset_px


def point_cloud(
    depth_m: Float[np.ndarray, "H W"],
    left: UInt8[np.ndarray, "H W 3"],
    keep: Bool[np.ndarray, "H W"],
    rig: StereoCalibration,
) -> tuple[Float[np.ndarray, "N 3"], UInt8[np.ndarray, "N 3"]]:
    """Return the points in metres, x right, y down, z forward from the left camera, and their colours."""
    rows, columns = np.nonzero(keep & np.isfinite(depth_m))
    z = depth_m[rows, columns]
    x = (columns - rig.cx_left_px) * z / rig.focal_px
    y = (rows - rig.cy_px) * z / rig.focal_y_px
    return np.stack([x, y, z], axis=-1).astype(np.float32), left[rows, columns]


def _nan_unless(known: Any, values: Numbers) -> Numbers:
    """Return the values where `known`, NaN elsewhere; tensors are recognised by a method, so torch is not imported."""
    if hasattr(values, "masked_fill"):
        return (values + 0.0).masked_fill(~known, math.nan)
    if isinstance(values, int | float):
        return values if known else math.nan  # pyright: ignore[reportReturnType] (an int is a number too)
    return np.where(known, values, math.nan)  # pyright: ignore[reportReturnType]
