"""A rig of two cameras: what calibration found out, checked, and what depth needs to know of it.

OpenCV's conventions: a point at X in the left camera's axes (x right, y down, z forward) stands at R X + T in the right
camera's, so a right camera that is right of the left one has T[0] < 0. Metres and pixels.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from foundation_stereo_depth.calibration.rectification import (
    DistortionModel,
    Lens,
    Rectification,
    check_given,
    compute_rectification,
)
from foundation_stereo_depth.calibration.settings import RigSettings
from foundation_stereo_depth.errors import CalibrationError
from foundation_stereo_depth.stereo.geometry import StereoCalibration, check_aspect

__all__ = ["DistortionModel", "Rectification", "RigCalibration", "create_rectified_rig", "implausible_baseline"]

SMALLEST_BASELINE_M = 0.01
LARGEST_BASELINE_M = 2.0
"""Rigs that people hold or mount lie between; anything else is more likely a mistake of units."""

_ROTATION_TOLERANCE = 1e-3
"""Largest entry of R R' - I: files that keep four digits pass."""
_RECTIFICATION_TOLERANCE = 0.01
"""How far a given rectification may turn, rad, and its baseline differ, relatively, from what R and T say."""
_FAR_OFF, _OUTSIDE = 0.1, 0.5
"""Fractions of the image by which a principal point is off its middle: unusual, and beyond its edge."""
_OTHER_SIZE, _OTHER_SIZE_RECTIFIED, _ALIKE = 0.12, 0.15, 0.05
"""Where a principal point is off the middle by one fraction across and down, the numbers are of another image size."""
_COEFFICIENTS = {"radtan": (0, 4, 5, 8, 12, 14), "equidistant": (4,)}
"""How many distortion coefficients OpenCV's two models take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RigCalibration:
    """Two cameras and their pose to each other, as OpenCV's stereoCalibrate returns it, at one image size.

    Attributes:
        width, height: of the raw images that the rest refers to, px.
        left_matrix, right_matrix: fx, fy, cx, cy in px, as 3x3 camera matrices.
        left_distortion, right_distortion: coefficients in OpenCV's order; none where images are free of it.
        distortion_model: radtan (OpenCV's usual model, up to 14 coefficients) or equidistant (its fisheye, 4).
        rotation, translation_m: X_right = R X_left + T.
        rectification: as the calibration gives it; None has it computed.
        settings: of the left and the right camera while they were calibrated; None where they are unknown.

    Raises:
        CalibrationError: this is no horizontal rig with the left camera on the left, or numbers contradict each other.
    """

    width: int
    height: int
    left_matrix: Float[np.ndarray, "3 3"]
    left_distortion: Float[np.ndarray, " N"]
    right_matrix: Float[np.ndarray, "3 3"]
    right_distortion: Float[np.ndarray, " M"]
    distortion_model: DistortionModel = "radtan"
    rotation: Float[np.ndarray, "3 3"]
    translation_m: Float[np.ndarray, "3"]
    rectification: Rectification | None = None
    settings: RigSettings | None = None

    def __post_init__(self) -> None:
        _check_cameras(self)
        _check_pose(self)
        if self.rectification is not None:
            _check_rectification(self, self.rectification)

    @functools.cached_property
    def rectified(self) -> Rectification:
        """The rectification that the calibration gives, or else the computed one.

        Raises:
            CalibrationError: none is given, and none shows what both cameras see.
        """
        if self.rectification is not None:
            return self.rectification
        left, right = (
            Lens(
                matrix=matrix,
                distortion=distortion,
                model=self.distortion_model,
                width=self.width,
                height=self.height,
            )
            for matrix, distortion in (
                (self.left_matrix, self.left_distortion),
                (self.right_matrix, self.right_distortion),
            )
        )
        return compute_rectification(left, right, self.rotation, self.translation_m)

    @property
    def stereo_calibration(self) -> StereoCalibration:
        """What depth needs to know of rectified images of the calibration's own size."""
        left, right = self.rectified.left_projection, self.rectified.right_projection
        return StereoCalibration(
            width=self.width,
            height=self.height,
            focal_px=float(left[0, 0]),
            focal_y_px=float(left[1, 1]),
            cx_left_px=float(left[0, 2]),
            cx_right_px=float(right[0, 2]),
            cy_px=float(left[1, 2]),
            baseline_m=self.rectified.baseline_m,
        )

    def with_far_in_view(self) -> "RigCalibration":
        """Return a rig in which points at infinity have disparity 0 where here they have less, which no matcher finds.

        The right rectified image is shifted by that much; everything else stays. Calibrations by `stereoRectify`
        without CALIB_ZERO_DISPARITY may need it. Images that are rectified already are left alone.
        """
        given = self.rectified
        offset_px = float(given.left_projection[0, 2] - given.right_projection[0, 2])
        if offset_px >= 0 or self.is_rectified:
            return self
        shifted = given.right_projection.copy()
        shifted[0, 2] += offset_px
        return dataclasses.replace(self, rectification=dataclasses.replace(given, right_projection=shifted))

    @property
    def is_rectified(self) -> bool:
        """True where the calibration describes images that are rectified already, so that nothing is left to do."""
        rectified = self.rectified
        rotations = (rectified.left_rotation, rectified.right_rotation)
        return (
            all(np.array_equal(rotation, np.eye(3)) for rotation in rotations)
            and not self.left_distortion.any()
            and not self.right_distortion.any()
            and np.array_equal(rectified.left_projection[:, :3], self.left_matrix)
            and np.array_equal(rectified.right_projection[:, :3], self.right_matrix)
        )

    def check_size(self, height: int, width: int) -> None:
        """Check that raw images have the calibration's size, or another with the same aspect.

        Raises:
            CalibrationError: their aspect differs, so the camera cropped them or the calibration is another camera's.
        """
        check_aspect(height, width, self.height, self.width)


def create_rectified_rig(
    *,
    width: int,
    height: int,
    left: Float[np.ndarray, "3 3"],
    right: Float[np.ndarray, "3 3"],
    translation_m: Float[np.ndarray, "3"],
) -> RigCalibration:
    """Return the rig of images that are rectified: no distortion, no rotation, cameras side by side.

    Args:
        width: of the images, px.
        height: of the images, px.
        left: camera matrix.
        right: camera matrix; only cx may differ from the left one's.
        translation_m: T, (-baseline, 0, 0).
    """
    return RigCalibration(
        width=width,
        height=height,
        left_matrix=left,
        left_distortion=np.zeros(0),
        right_matrix=right,
        right_distortion=np.zeros(0),
        rotation=np.eye(3),
        translation_m=translation_m,
        rectification=Rectification(
            left_rotation=np.eye(3),
            right_rotation=np.eye(3),
            left_projection=np.column_stack([left, np.zeros(3)]),
            right_projection=np.column_stack([right, right @ translation_m]),
        ),
    )


def implausible_baseline(rig: RigCalibration) -> str | None:
    """Return a sentence on a baseline that no usual rig has, None for a usual one."""
    baseline_m = float(np.linalg.norm(rig.translation_m))
    if SMALLEST_BASELINE_M <= baseline_m <= LARGEST_BASELINE_M:
        return None
    return f"a baseline of {baseline_m:.4g} m, where {SMALLEST_BASELINE_M} to {LARGEST_BASELINE_M} are plausible"


def _check_cameras(rig: RigCalibration) -> None:
    if rig.width < 1 or rig.height < 1:
        raise CalibrationError(f"an image size of {rig.width}x{rig.height} px; it has to be above 0")
    cameras = (("left", rig.left_matrix, rig.left_distortion), ("right", rig.right_matrix, rig.right_distortion))
    for name, matrix, distortion in cameras:
        if not (np.isfinite(matrix).all() and np.isfinite(distortion).all()):
            raise CalibrationError(f"the {name} camera's numbers are not all finite")
        if len(distortion) not in _COEFFICIENTS[rig.distortion_model]:
            raise CalibrationError(
                f"{len(distortion)} distortion coefficients of the {name} camera; {rig.distortion_model} takes "
                f"{', '.join(map(str, _COEFFICIENTS[rig.distortion_model]))}"
            )
        _check_matrix(rig, name, matrix)


def _check_matrix(rig: RigCalibration, name: str, matrix: Float[np.ndarray, "3 3"]) -> None:
    fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    if not np.allclose(matrix, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], atol=1e-3):
        raise CalibrationError(
            f"the {name} camera's matrix is not (fx 0 cx; 0 fy cy; 0 0 1); is it transposed, or another matrix?"
        )
    # Lenses from a 4-degree telephoto to a 160-degree fisheye, and pixels at most twice as wide as high.
    if not (0.1 * rig.width < fx < 15 * rig.width and 0.5 < fx / fy < 2):
        raise CalibrationError(
            f"focal lengths of {fx:.4g} and {fy:.4g} px in images {rig.width} px wide belong to no usual {name} "
            "camera; are they in px, and is the image size the calibrated one?"
        )
    _check_scale(rig, f"the {name} camera's", matrix, _OTHER_SIZE)
    across, down = cx / rig.width, cy / rig.height
    off = _off_centre(across, down)
    if off >= _OUTSIDE or (off > _FAR_OFF and _off_centre(cx / rig.height, cy / rig.width) < off / 3):
        raise CalibrationError(
            f"the {name} camera's principal point ({cx:.1f}, {cy:.1f}) does not lie in {rig.width}x{rig.height} "
            "images as it would in those it was calibrated with; is the size right, width before height?"
        )


def _check_scale(rig: RigCalibration, whose: str, matrix: Float[np.ndarray, "3 _"], tolerance: float) -> None:
    """Check that a principal point is not off the middle by one factor across and down, as at another image size."""
    across, down = float(matrix[0, 2]) / rig.width, float(matrix[1, 2]) / rig.height
    alike = abs(across - down) < _ALIKE * max(1.0, 2 * across)
    if alike and (max(across, down) < 0.5 - tolerance or min(across, down) > 0.5 + tolerance):
        size = "smaller" if across < 0.5 else "larger"
        raise CalibrationError(
            f"{whose} principal point ({matrix[0, 2]:.1f}, {matrix[1, 2]:.1f}) lies at {across:.2f} of the width and "
            f"{down:.2f} of the height of {rig.width}x{rig.height}; are these numbers of {size} images? All have to be "
            "of one size, that of --calibration-size or of the file"
        )


def _off_centre(across: float, down: float) -> float:
    """Return how far a point, in fractions of width and height, is from the middle: 1/2 at the edges."""
    return max(abs(across - 0.5), abs(down - 0.5))


def _check_pose(rig: RigCalibration) -> None:
    _check_rotation("R", rig.rotation)
    x, y, z = (float(value) for value in rig.translation_m)
    if not all(map(math.isfinite, (x, y, z))):
        raise CalibrationError("T, the right camera's position, is not finite")
    if x == y == z == 0:
        raise CalibrationError("T is 0: the distance of the two cameras is not in this calibration")
    if abs(y) > abs(x) and abs(y) > abs(z):
        raise CalibrationError(
            f"T is ({x:.4g}, {y:.4g}, {z:.4g}) m: one camera is above the other; only rigs side by side work: turn "
            "both cameras, or their images, by 90 degrees and calibrate again"
        )
    if abs(z) > abs(x):
        raise CalibrationError(
            f"T is ({x:.4g}, {y:.4g}, {z:.4g}) m: one camera is behind the other, which is no stereo rig; is it T of "
            "X_right = R X_left + T?"
        )
    if x > 0:
        raise CalibrationError(
            f"T is ({x:.4g}, {y:.4g}, {z:.4g}) m, but a right camera right of the left one has T[0] < 0 (X_right = R "
            "X_left + T): left and right are exchanged; swap the two cameras, or the calibration's two halves"
        )


def _check_rectification(rig: RigCalibration, given: Rectification) -> None:
    left, right = given.left_projection, given.right_projection
    _check_rotation("R1", given.left_rotation)
    _check_rotation("R2", given.right_rotation)
    if np.abs(left[:, :3] - right[:, :3])[[0, 1, 1], [0, 1, 2]].max() > 1e-3 * left[0, 0]:
        raise CalibrationError(
            "P1 and P2 differ in focal length or row of the principal point: rows would not meet rows"
        )
    baseline_m = float(np.linalg.norm(rig.translation_m))
    if not abs(given.baseline_m / baseline_m - 1) <= _RECTIFICATION_TOLERANCE:
        raise CalibrationError(
            f"P2 says a baseline of {given.baseline_m:.4g} m, T one of {baseline_m:.4g} m; are they in two units, "
            "or of two calibrations?"
        )
    # Rectified axes are common ones: both cameras' rotations lead to them, and T lies along their rows.
    relative = given.right_rotation @ rig.rotation @ given.left_rotation.T
    turned = np.abs(relative - np.eye(3)).max()
    along = given.right_rotation @ rig.translation_m / baseline_m
    if max(turned, np.abs(along - [-1, 0, 0]).max()) > _RECTIFICATION_TOLERANCE:
        raise CalibrationError("R1 and R2 do not rectify a rig with this R and T; are they another calibration's?")
    for name, projection in (("P1's", left), ("P2's", right)):
        _check_scale(rig, name, projection, _OTHER_SIZE_RECTIFIED)
    check_given(
        given,
        Lens(
            matrix=rig.left_matrix,
            distortion=rig.left_distortion,
            model=rig.distortion_model,
            width=rig.width,
            height=rig.height,
        ),
    )


def _check_rotation(name: str, rotation: Float[np.ndarray, "3 3"]) -> None:
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not error <= _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise CalibrationError(
            f"{name} is no rotation: {name} {name}' differs from the identity by {error:.2g}, its determinant is "
            f"{np.linalg.det(rotation):.4g}"
        )
